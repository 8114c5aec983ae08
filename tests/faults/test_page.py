"""The page of faults lists the tests of faults, and the tests cover the list of faults."""

from __future__ import annotations

from faults import page


def test_the_page_lists_exactly_the_tests_of_faults_as_they_are_marked():
    found = page.PAGE.read_text()
    assert found == page.text(page.rows(), page.notes(found)), "renew docs/reliability.md with: pytest --record-faults"


def test_every_row_was_tried_or_says_why_it_could_not_be():
    assert [test for test, note in page.notes(page.PAGE.read_text()).items() if note == page.NEW] == []


def test_every_kind_of_fault_is_injected_by_some_test():
    assert {row.section for row in page.rows()} == set(page.SECTIONS)


def test_a_row_is_one_line_and_no_two_tests_claim_the_same():
    rows = page.rows()
    for row in rows:
        assert row.fault and row.outcome and not set("|\n") & set(row.fault + row.outcome), row
    assert len({(row.section, row.fault) for row in rows}) == len(rows)


class Report:
    def __init__(self, nodeid, outcome, when="call", reason=None):
        self.nodeid, self.outcome, self.when, self.longrepr = nodeid, outcome, when, ("", 0, f"Skipped: {reason}")


def test_a_failed_test_keeps_the_page_from_being_written(tmp_path):
    recorder = page.Recorder()
    recorder.add(Report(f"{page.rows()[0].test}[first]", "passed"))
    recorder.add(Report(f"{page.rows()[0].test}[second]", "failed"))
    assert page.rows()[0].test in recorder.write(tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def test_a_skipped_test_is_said_to_be_and_one_that_did_not_run_keeps_its_note(tmp_path):
    first, second, third, *_ = dict.fromkeys(row.test for row in page.rows())
    recorder = page.Recorder()
    recorder.add(Report(first, "skipped", "setup", "no such program"))
    recorder.add(Report(second, "passed"))
    recorder.write(tmp_path / "page.md")
    found = page.notes((tmp_path / "page.md").read_text())
    assert (found[first], found[second], found[third]) == (
        "not tried where this was made: no such program",
        "",
        page.NEW,
    )
    page.Recorder().write(tmp_path / "page.md")
    assert page.notes((tmp_path / "page.md").read_text()) == found
