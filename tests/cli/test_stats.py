"""gdn-lab stats: the reports, their CSV, exit statuses and sentences."""

import io

import pandas
import pytest
from recorded_traces import eager_and_graph, two_steps, write_kineto, write_nsys

from gdn_lab.cli.main import main
from gdn_lab.trace import crosscheck, read


@pytest.fixture
def trace(tmp_path):
    return write_nsys(tmp_path / "trace.sqlite", two_steps())


def test_all_reports_as_text(trace, capsys):
    assert main(["stats", str(trace)]) == 0
    printed = capsys.readouterr().out
    assert [line.partition(":")[0] for line in printed.splitlines() if ": " in line and "rows" in line] == list(
        crosscheck.REPORTS
    )


@pytest.mark.parametrize("report", crosscheck.REPORTS)
def test_csv_holds_every_number(trace, report, capsys):
    assert main(["stats", str(trace), "--report", report, "--csv"]) == 0
    expected = crosscheck.REPORTS[report][0](read(trace))
    printed = pandas.read_csv(io.StringIO(capsys.readouterr().out), keep_default_na=False)
    assert printed.columns.tolist() == expected.columns.tolist() and len(printed) == len(expected) > 0
    total = next(column for column in expected if column.startswith("Total"))
    assert printed[total].astype(float).tolist() == expected[total].astype(float).tolist()


def test_kineto(tmp_path, capsys):
    assert (
        main(
            [
                "stats",
                str(write_kineto(tmp_path / "k.json", eager_and_graph(nodes=False))),
                "--report",
                "cuda_gpu_kern_sum",
            ]
        )
        == 0
    )
    assert "rows, times in ns" in capsys.readouterr().out


def test_what_cannot_be_summarised(trace, tmp_path, capsys):
    assert main(["stats", str(trace), "--report", "kernels"]) == 2
    assert "report: kernels unknown; choose some of cuda_gpu_kern_sum" in capsys.readouterr().err
    assert main(["stats", str(tmp_path / "none.sqlite")]) == 1
    assert "there is no trace" in capsys.readouterr().err
