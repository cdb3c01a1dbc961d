import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from masters_ray.errors import StoreError
from masters_ray.files import Measured, append_lines, as_json, read_record, read_records, write_json
from masters_ray.progress import say


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    share: Measured


@dataclass(frozen=True, kw_only=True)
class Whole:
    count: int
    parts: list[Part]
    by_name: dict[str, float]
    remark: str | None = None


GOOD = Whole(count=2, parts=[Part(name="a", share=0.5)], by_name={"a": 1.0})


def test_what_is_written_is_read_and_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", GOOD)
    assert read_record(tmp_path / "x.json", Whole, "Mend it.") == GOOD
    append_lines(tmp_path / "x.jsonl", as_json([GOOD, Part(name="b", share=math.nan)])[1:])
    assert '"share": null' in (tmp_path / "x.jsonl").read_text()
    [part] = read_records(tmp_path / "x.jsonl", Part, "Mend it.")
    assert part.name == "b" and math.isnan(part.share)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"count": true, "parts": [], "by_name": {}}', "count: expected a valid integer, found True. Mend it."),
        (
            '{"count": 2, "parts": [{"name": 3, "share": 1}]}',
            "parts[0].name: expected a valid string, found 3; by_name: expected a value, found none. Mend it.",
        ),
        ("7", "the top: expected an object, found 7. Mend it."),
        ("{", "not JSON (Expecting property name"),
    ],
)
def test_what_is_wrong_is_named(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(StoreError) as error:
        read_record(tmp_path / "x.json", Whole, "Mend it.")
    assert str(error.value).startswith(f"{tmp_path / 'x.json'}: {told}")


def test_a_wrong_line_is_named_and_a_last_one_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    good = '{"name": "a", "share": 1}\n'
    file.write_text(f'{good}\n{good}{{"name": "')
    assert len(read_records(file, Part, "Mend it.")) == 2
    file.write_text(f'{good}{{"name": "a"}}\n')
    with pytest.raises(StoreError, match=r"x\.jsonl: line 2: share: expected a value, found none\. Mend it\."):
        read_records(file, Part, "Mend it.")


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "step :100: 's3://x:3/y.png' [bold]has[/bold] 'quotes' " + "and is long " * 20 + "\\[x]"
    say(line)
    assert capsys.readouterr().out == line + "\n"
