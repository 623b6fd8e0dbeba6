from __future__ import annotations

import csv
import io

import pytest

from ns_easyrobust.experiments.patch_rows import Row, dimensions_csv
from ns_easyrobust.utils import as_csv


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_a_text_that_would_be_a_formula_is_not(start):
    ((cell, plain),) = csv.reader(io.StringIO(as_csv([(f"{start}1+1", "a=1")]), newline=""))
    assert (cell, plain) == (f"'{start}1+1", "a=1")


def test_a_line_end_in_a_cell_begins_no_row():
    assert as_csv([("a\r=1+1", "b\n=1+1")]) == '"a\r=1+1","b\n=1+1"\n'


def test_numbers_stay_numbers():
    assert as_csv([(-0.1, -3, 1e-300, None, True, "x,y")]) == '-0.1,-3,1e-300,,True,"x,y"\n'


def test_the_table_of_dimensions_is_written_so():
    row = Row("=cmd()", "random", 16, 768, 192, 576, None, 0.5, -0.25)
    assert dimensions_csv([row]).splitlines()[1] == "'=cmd(),random,16,768,192,576,,0.5,-0.25"
