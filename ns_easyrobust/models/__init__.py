"""Building, loading and saving models; the only folder that knows a transformer's internal structure."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .architectures import build, register_small_models, require_named
    from .attention import attention_blocks, attention_maps, fused_attention, prefix_tokens
    from .checkpoint_save import export_checkpoint, save_model
    from .checkpoints import Checkpoint, load_model, read_checkpoint
    from .digest import state_digest
    from .download import is_url
    from .ema import Ema
    from .factories import is_factory
    from .features import features_of
    from .fitting import image_size_for, load_into
    from .hooks import (
        capture_patch_embed,
        depends_on_embedding_alone,
        encoder_noise,
        frozen,
        replaced_forward,
        storage_free_zeros,
        token_shape,
    )
    from .hub import is_hub_name, required_arch
    from .keys import PatchKeys, last_keys
    from .normalization import NormalizedModel, resolve_normalization
    from .outputs import logits_of, mean_logits, output_of
    from .projections import HeadProjections, attention_inputs, head_outputs, head_projections
    from .relevance import relevance_maps
    from .safe_load import ALLOWED_GLOBALS, read_file, read_without_objects
    from .saliency import SALIENCY_METHODS, Saliency, all_saliency_maps, saliency_maps
    from .token_readers import reader_without_layer_norm
    from .vit import (
        bare_vit,
        find_noise_site,
        find_normalize,
        find_patch_embed,
        find_patch_size,
        reference_tensor,
        required_image_size,
        unwrap,
    )
    from .weights import LAYOUTS

__all__ = [
    "ALLOWED_GLOBALS",
    "LAYOUTS",
    "SALIENCY_METHODS",
    "Checkpoint",
    "Ema",
    "HeadProjections",
    "NormalizedModel",
    "PatchKeys",
    "Saliency",
    "all_saliency_maps",
    "attention_blocks",
    "attention_inputs",
    "attention_maps",
    "bare_vit",
    "build",
    "capture_patch_embed",
    "depends_on_embedding_alone",
    "encoder_noise",
    "export_checkpoint",
    "features_of",
    "find_noise_site",
    "find_normalize",
    "find_patch_embed",
    "find_patch_size",
    "frozen",
    "fused_attention",
    "head_outputs",
    "head_projections",
    "image_size_for",
    "is_factory",
    "is_hub_name",
    "is_url",
    "last_keys",
    "load_into",
    "load_model",
    "logits_of",
    "mean_logits",
    "output_of",
    "prefix_tokens",
    "read_checkpoint",
    "read_file",
    "read_without_objects",
    "reader_without_layer_norm",
    "reference_tensor",
    "register_small_models",
    "relevance_maps",
    "replaced_forward",
    "require_named",
    "required_arch",
    "required_image_size",
    "resolve_normalization",
    "saliency_maps",
    "save_model",
    "state_digest",
    "storage_free_zeros",
    "token_shape",
    "unwrap",
]

if not TYPE_CHECKING:
    from ..utils import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
