"""Ratios, goals, plots and the report of given measurements. Nothing is measured here."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.__main__ import APART, AREAS, PAGE, RESULTS, render_files, with_published
from benchmarks.generation_peers import cost_of_a_file
from benchmarks.plot import svg
from benchmarks.report import LIMITS, render_report
from benchmarks.results import Area, Comparison, Figures, Samples, is_met, number, results


def area(*comparisons: Comparison, **sides: list[float]) -> Area:
    samples = {name: Samples("rows/s", values) for name, values in sides.items()}
    return Area("outbox", "The <outbox>", "How it is done.", list(comparisons), samples)


def found(*areas: Area) -> dict[str, object]:
    how = {"rounds": 3, "scale": 1.0, "versions": {"peer": "1.2"}}
    return results(areas, {"cores": 2}, "2026-01-31", "abcdef" * 7, **how)


def test_a_ratio_is_of_medians() -> None:
    (row,) = area(Comparison("x", "a", "b"), a=[10, 40, 30], b=[1, 3, 20]).rows()
    assert (row["ours"], row["other"], row["ratio"]) == (30, 3, 10)
    assert row["spread"] == {"ours": [10, 40], "other": [1, 20]}
    assert row["met"] is None


def test_of_several_sides_the_fastest_counts() -> None:
    lanes = Comparison("x", ["a", "b", "not measured"], "c")
    (row,) = area(lanes, a=[5], b=[8], c=[2]).rows()
    assert (row["ratio"], row["sides"]) == (4, ["b", "c"])


def test_a_comparison_without_its_sides_has_no_row() -> None:
    assert list(area(Comparison("x", "a", "b"), a=[1]).rows()) == []


def test_a_side_that_failed_has_no_figure_and_misses_its_goal() -> None:
    measured = area(Comparison("x", "a", "b", ">= 2"), a=[9, 9], b=[1])
    measured.sides["a"].failed = "TimeoutError: | too late"
    (row,) = measured.rows()
    assert (row["ours"], row["ratio"], row["met"]) == (None, None, False)
    output = render_report(found(measured))
    assert "| x | failed | 1 (1 - 1) |" in output
    assert "`a` failed: TimeoutError: | too late" in output
    assert ">failed</text>" in svg(measured)


@pytest.mark.parametrize(
    ("ratio", "goal", "met"),
    [
        (2.0, ">= 2", True),
        (1.99, ">= 2", False),
        (2.0, "<= 2", True),
        (2.01, "<= 2", False),
        (None, "<= 2", False),
        (5.0, "", None),
    ],
)
def test_goals_are_bounds_of_the_ratio(ratio: float | None, goal: str, met: bool | None) -> None:
    assert is_met(ratio, goal) is met


def test_a_goal_without_a_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match="no goal"):
        is_met(1.0, "4")


def test_a_figure_of_nothing_has_a_ratio() -> None:
    (row,) = area(Comparison("growth", "a", "b"), a=[0.0], b=[20.0]).rows()
    assert row["ratio"] == 0
    (row,) = area(Comparison("beside nothing", "a", "b"), a=[20.0], b=[0.0]).rows()
    assert row["ratio"] is None


def test_processor_time_is_kept_beside_the_rate() -> None:
    samples = Samples("rows/s")
    samples.add(Figures(100, 7.5))
    assert (samples.values, samples.cpu_us) == ([100], [7.5])


def test_an_area_survives_json() -> None:
    measured = area(Comparison("x", ["a"], "b", ">= 2"), a=[1], b=[2])
    assert Area.of(json.loads(json.dumps(measured.as_json()))) == measured


def test_the_report_names_goals_met_and_growth_beyond_linear() -> None:
    goals = [Comparison("met", "a", "b", ">= 2"), Comparison("missed", "b", "a", ">= 2")]
    growth = [
        Comparison("10 times the rows", "a", "b", growth=True),
        Comparison("100 times the rows", "b", "a", growth=True),
    ]
    output = render_report(found(area(*goals, *growth, a=[8], b=[4])))
    assert "1 of 2 are met." in output
    assert "| outbox | met | 2.00 | >= 2 | met |" in output
    assert "| outbox | missed | 0.50 | >= 2 | **missed** |" in output
    assert "| 10 times the rows | 8 | 4 | rows/s | 2.00 | better than linear" in output
    assert "| 100 times the rows | 4 | 8 | rows/s | 0.50 | no longer linear" in output


def test_a_soak_keeps_its_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each run replaces its own results only, and the page has both."""
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path)
    latest = tmp_path / "latest.json"
    everything, soak = found(area(a=[1])), found(area(b=[2]))
    latest.write_text(json.dumps(everything))
    both = {**everything, "apart": soak}
    assert with_published(soak, apart=True) == json.loads(json.dumps(both))
    latest.write_text(json.dumps(both))
    assert with_published(everything, apart=False)["apart"] == json.loads(json.dumps(soak))

    assert render_report(both).count("## The <outbox>") == 2
    assert "\nA run of its own: 2026-01-31, `abcdefabcdef`.\n" in render_report(both)
    assert "A run of its own" not in render_report(everything)


def test_loads_are_linear_when_an_event_costs_the_same() -> None:
    measured = area(Comparison("loads: 10 times the events", "a", "b", growth=True))
    measured.sides = {"a": Samples("loads/s", [1.0]), "b": Samples("loads/s", [10.0])}
    assert "| 0.10 | linear |" in render_report(found(measured))


def test_requests_are_constant_when_larger_tables_cost_the_same() -> None:
    measured = area(
        Comparison("list: 10 times the orders", "b", "a", growth=True),
        Comparison("list: 100 times the orders", "c", "a", growth=True),
    )
    rates = {"a": 300.0, "b": 290.0, "c": 30.0}
    measured.sides = {name: Samples("requests/s", [rate]) for name, rate in rates.items()}
    output = render_report(found(measured))
    assert "| 0.97 | constant |" in output
    assert "| 0.10 | no longer constant: one costs more |" in output


def test_copies_are_linear_when_a_file_costs_the_same() -> None:
    measured = area(
        Comparison("10 times the files", "b", "a", growth=True),
        Comparison("100 times the files", "c", "a", growth=True),
    )
    measured.sides = {
        "a": Samples("s", [1.0]),
        "b": Samples("s", [9.0]),
        "c": Samples("s", [200.0]),
    }
    output = render_report(found(measured))
    assert "| 9.00 | linear |" in output
    assert "| 200.00 | no longer linear: one costs more |" in output


def test_the_cost_of_a_file_excludes_the_first() -> None:
    many, one = Samples("s", [3.0, 2.5]), Samples("s", [1.0, 0.5])
    assert cost_of_a_file(one, many, 101) == Samples("ms", [20.0, 20.0])
    failed = Samples("s", [3.0], failed="it stopped")
    assert cost_of_a_file(one, failed, 101).median is None


def test_a_plot_is_well_formed_and_in_proportion() -> None:
    measured = area(a=[100], b=[50])
    measured.sides["a, growth x10"] = Samples("rows/s", [1000])
    drawn = ElementTree.fromstring(svg(measured))
    space = "{http://www.w3.org/2000/svg}"
    bars = [float(bar.get("width", 0)) for bar in drawn.iter(f"{space}rect")][3:]
    assert len(bars) == 2  # growth is a table's
    assert bars[0] == pytest.approx(2 * bars[1], rel=0.01)
    assert "The <outbox>" in [text.text for text in drawn.iter(f"{space}text")]


def test_figures_have_significant_digits_only() -> None:
    assert [number(n) for n in (12345.6, 123.4, 12.345, 0.01234, None)] == [
        "12,346",
        "123",
        "12.3",
        "0.0123",
        "failed",
    ]


def test_every_area_says_what_limits_it() -> None:
    assert set(LIMITS) == {*AREAS, *APART}


def test_the_report_and_the_plots_are_current() -> None:
    latest = json.loads((RESULTS / "latest.json").read_text())
    for name, text in render_files(latest).items():
        file = PAGE if name == PAGE.name else RESULTS / name
        assert file.read_text() == text, f"{file.name}: `nox -s bench` writes it, nobody else"


def test_latest_json_has_every_area_and_names_no_host() -> None:
    latest = json.loads((RESULTS / "latest.json").read_text())
    assert {row["area"] for row in latest["rows"]} == set(AREAS)
    assert set(latest["machine"]) == {"cores", "processor", "memory", "kernel", "python"}
    assert all({"name", "ours", "other", "unit", "ratio", "goal"} <= set(r) for r in latest["rows"])
