"""Reports from records: tables, figures, an HTML page and leaderboard submission forms."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention_conditions import attention_report
    from .canvas import colour, open_canvas
    from .closure import closure_report
    from .columns import column_key, columns_of
    from .dimensions import dimensions_report
    from .dynamics import dynamics_report
    from .encoder_noise import encoder_noise_report
    from .eps import eps_report
    from .feasible_norm_picture import feasible_norm_figure
    from .feasible_norms import NormChanges
    from .figure_report import FigureReport, files_of
    from .figures import image_sheet, noise_history
    from .fingerprint import fingerprint_report
    from .leaderboards import LEADERBOARDS, easyrobust_form, read_about, robustbench_form
    from .patch_noise import patch_noise_report
    from .patch_noise_rows import PatchNoiseKinds
    from .published import PUBLISHED_TABLES, Published
    from .saliency import saliency_report
    from .saliency_picture import heat_overlay
    from .saliency_rows import SaliencyKinds
    from .seed_statistics import Interval, interval_of_mean
    from .sheet import Cell, Sheet, as_text, escape, escape_text
    from .statistics import holm, wilson_interval
    from .study_corruptions import corruptions_csv, corruptions_markdown
    from .study_measures import GROUP_NAMES
    from .study_picture import study_figure
    from .study_primary import ENDPOINTS, Endpoint, PrimaryEndpoint, SecondaryEndpoint
    from .study_runs import MethodRuns, SeedRun
    from .study_table import StudyTable
    from .table import ResultsTable
    from .table2 import Table2
    from .table2_view import table2_sheet
    from .targeted import targeted_report
    from .targeted_rows import UNCHANGED, shown_triplet_name
    from .transfer import transfer_report
    from .watermark import watermark_report
    from .watermark_rows import WatermarkKinds
    from .writing import write_report, write_tables

__all__ = [
    "ENDPOINTS",
    "GROUP_NAMES",
    "LEADERBOARDS",
    "PUBLISHED_TABLES",
    "UNCHANGED",
    "Cell",
    "Endpoint",
    "FigureReport",
    "Interval",
    "MethodRuns",
    "NormChanges",
    "PatchNoiseKinds",
    "PrimaryEndpoint",
    "Published",
    "ResultsTable",
    "SaliencyKinds",
    "SecondaryEndpoint",
    "SeedRun",
    "Sheet",
    "StudyTable",
    "Table2",
    "WatermarkKinds",
    "as_text",
    "attention_report",
    "closure_report",
    "colour",
    "column_key",
    "columns_of",
    "corruptions_csv",
    "corruptions_markdown",
    "dimensions_report",
    "dynamics_report",
    "easyrobust_form",
    "encoder_noise_report",
    "eps_report",
    "escape",
    "escape_text",
    "feasible_norm_figure",
    "files_of",
    "fingerprint_report",
    "heat_overlay",
    "holm",
    "image_sheet",
    "interval_of_mean",
    "noise_history",
    "open_canvas",
    "patch_noise_report",
    "read_about",
    "robustbench_form",
    "saliency_report",
    "shown_triplet_name",
    "study_figure",
    "table2_sheet",
    "targeted_report",
    "transfer_report",
    "watermark_report",
    "wilson_interval",
    "write_report",
    "write_tables",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
