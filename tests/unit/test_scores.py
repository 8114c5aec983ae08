"""The table of scores: nothing lost on the way through the file, nothing found that is not there."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_bench.report import scores
from nap_bench.report.scores import Score, Scores

ROWS = [
    Score("nap", "adam", "last_ten_accuracy", None, 1, 0.1 + 0.2),
    Score("nap", "adam", "last_ten_accuracy", None, 0, math.nan),
    Score("baseline", "", "last_ten_accuracy", None, 0, 0.5),
    Score("nap", "adam", "accuracy", 600, 0, math.nan),
    Score("nap", "adam", "accuracy", 600, 1, 0.75),
    Score("nap", "adam", "accuracy", 300.0, 1, 0.25),
    Score("nap", "adam", "accuracy", 300.0, 0, 1e-300),
]
NAMES = st.text(alphabet='abc_=. ,"\n\u00e9', max_size=6)
KEYS = st.tuples(NAMES, NAMES, NAMES.map("s".__add__), st.none(), st.integers(0, 99)) | st.tuples(
    NAMES, NAMES, NAMES.map("c".__add__), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 99)
)


def test_what_is_read_is_what_was_written(tmp_path):
    scores.write(tmp_path / "deep" / "arms.csv", ROWS)
    found = scores.read(tmp_path / "deep" / "arms.csv")
    assert found.measures() == ("accuracy", "last_ten_accuracy")
    assert found.arms() == ("baseline", "nap")
    assert found.settings() == ("", "adam")
    assert found.values("last_ten_accuracy", "baseline") == {0: 0.5}
    values = found.values("last_ten_accuracy", "nap", "adam")
    assert list(values) == [0, 1]
    assert math.isnan(values[0]) and values[1] == 0.1 + 0.2
    x_T, seeds, values_TS = found.curve("accuracy", "nap", "adam")
    assert (x_T.tolist(), seeds.tolist()) == ([300.0, 600.0], [0, 1])
    np.testing.assert_array_equal(values_TS, [[1e-300, 0.25], [math.nan, 0.75]])


@settings(deadline=None)
@given(keys=st.lists(KEYS, unique=True, max_size=20), data=st.data())
def test_every_row_survives_the_file_bit_for_bit(tmp_path_factory, keys, data):
    rows = {key: data.draw(st.floats()) for key in keys}
    path = tmp_path_factory.mktemp("scores") / "x.csv"
    scores.write(path, [Score(*key, value) for key, value in rows.items()])
    found = scores.read(path)
    for (arm, setting, measure, x, seed), value in rows.items():
        assert found.has(measure, arm, setting) and found.has_cell(arm, setting)
        if x is None:
            again = found.values(measure, arm, setting)[seed]
        else:
            again = found._values[measure, arm, setting][x][seed]
        assert repr(again) == repr(value)


def test_the_order_of_rows_and_the_kind_of_their_numbers_do_not_change_the_bytes(tmp_path):
    shuffled = [row._replace(value=np.float64(row.value), seed=np.int64(row.seed)) for row in ROWS]
    random.Random(0).shuffle(shuffled)
    scores.write(tmp_path / "a.csv", ROWS)
    scores.write(tmp_path / "b.csv", shuffled)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_the_file_is_the_table_of_the_contract(tmp_path):
    scores.write(tmp_path / "a.csv", ROWS[:4])
    assert (tmp_path / "a.csv").read_text() == (
        "arm,setting,measure,x,seed,value\n"
        "baseline,,last_ten_accuracy,,0,0.5\n"
        "nap,adam,accuracy,600.0,0,\n"
        "nap,adam,last_ten_accuracy,,0,\n"
        "nap,adam,last_ten_accuracy,,1,0.30000000000000004\n"
    )


def test_a_failed_write_leaves_the_old_table(tmp_path):
    path = tmp_path / "a.csv"
    scores.write(path, ROWS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="two values"):
        scores.write(path, [ROWS[0], ROWS[0]])
    with pytest.raises(ValueError, match="x must be finite"):
        scores.write(path, [ROWS[0]._replace(x=math.nan)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_exhibit_without_any_result_is_an_empty_table(tmp_path):
    scores.write(tmp_path / "a.csv", [])
    found = scores.read(tmp_path / "a.csv")
    assert found.arms() == found.measures() == found.settings() == ()
    with pytest.raises(ValueError, match="Known measures: none"):
        found.values("accuracy", "nap")


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (("acuracy", "nap", "adam"), "Known measures: 'accuracy', 'last_ten_accuracy'"),
        (("accuracy", "napp", "adam"), "Known arms: 'baseline', 'nap'"),
        (("accuracy", "nap", "sgd"), "Known settings: '', 'adam'"),
        (("accuracy", "baseline", ""), r"exists for \(arm, setting\): \('nap', 'adam'\)"),
    ],
)
def test_asking_for_what_is_not_there_names_what_is(asked, named):
    found = Scores(ROWS)
    assert not found.has(*asked)
    for ask in (found.values, found.curve):
        with pytest.raises(ValueError, match=named):
            ask(*asked)


def test_a_scalar_is_no_curve_and_a_curve_is_no_scalar():
    found = Scores(ROWS)
    with pytest.raises(ValueError, match="is a curve"):
        found.values("accuracy", "nap", "adam")
    with pytest.raises(ValueError, match="is a scalar"):
        found.curve("last_ten_accuracy", "nap", "adam")
    with pytest.raises(ValueError, match="a scalar .* in some rows and a curve in others"):
        Scores([*ROWS, ROWS[3]._replace(x=None)])


def test_a_curve_that_lost_rows_of_a_seed_is_refused():
    with pytest.raises(ValueError, match=r"seeds \[0, 1\] at x = 300.0 but \[1\] at x = 600"):
        Scores(row for row in ROWS if (row.x, row.seed) != (600, 0)).curve("accuracy", "nap", "adam")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "wanted columns"),
        ("seed,value\n0,1\n", "wanted columns"),
        ("arm,setting,measure,x,seed,value\nnap,,accuracy,,0,0.5\nnap,,accuracy,,1\n", "line 3"),
        ("arm,setting,measure,x,seed,value\nnap,,accuracy,,0,good\n", "line 2"),
        ("arm,setting,measure,x,seed,value\nnap,,accuracy,,0,0.5\nnap,,accuracy,,0,0.5\n", "two values"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused_by_name(tmp_path, text, named):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=named) as error:
        scores.read(path)
    assert str(path) in str(error.value)


def test_what_a_reader_does_with_its_answer_does_not_change_the_table():
    found = Scores(ROWS)
    found.values("last_ten_accuracy", "baseline")[0] = 9.0
    assert found.values("last_ten_accuracy", "baseline") == {0: 0.5}
