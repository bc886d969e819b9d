import datetime
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from turnwise import errors
from turnwise.control.datasets import DataFile, load_files, prompt_column_of
from turnwise.domain.data import Row


def write(folder: Path, name: str, content: str | bytes) -> str:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(file)


def load_rows(path: str, **options: str) -> list[Row]:
    """`load_files` of one file."""
    return load_files([DataFile(name=path, path=Path(path))], **options)


def test_each_format_gives_the_same_rows(tmp_path: Path):
    rows = [
        Row(index=0, prompt="go left", fields={"prompt": "go left", "answer": "1"}, label="1"),
        Row(index=1, prompt='say "é"', fields={"prompt": 'say "é"', "answer": "2"}, label="2"),
    ]
    left, say = '{"prompt": "go left", "answer": "1"}', '{"prompt": "say \\"é\\"", "answer": "2"}'
    files = {
        "rows.jsonl": f"{left}\n\n{say}",
        "rows.JSON": f"[{left},\n {say}]",
        "rows.csv": 'prompt,answer\r\ngo left,1\r\n"say ""é""",2\r\n',
    }
    for name, content in files.items():
        file = write(tmp_path, name, content)
        assert load_rows(file, label_column="answer") == rows, name
        marked = write(tmp_path, "bom_" + name, b"\xef\xbb\xbf" + content.encode())
        assert load_rows(marked, label_column="answer") == rows, name


def test_a_prompt_that_is_not_text_is_passed_on_as_json(tmp_path: Path):
    file = write(tmp_path, "rows.jsonl", '{"messages": [{"role": "user", "content": "é"}]}')
    (row,) = load_rows(file, prompt_column="messages")
    assert row.prompt == '[{"role": "user", "content": "é"}]'


def test_a_line_separator_inside_a_string_does_not_end_the_record(tmp_path: Path):
    file = write(tmp_path, "rows.jsonl", '{"prompt": "one\u2028two"}\n')
    assert [row.prompt for row in load_rows(file)] == ["one\u2028two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.jsonl",
            '{"prompt": "a"}\n\n{"prompt": a}\n',
            "dataset line 3: '{\"prompt\": a}' is not JSON (Expecting value, column 12)",
        ),
        (
            "rows.jsonl",
            '{"prompt": "a"}\n{"prompt": "b", "score": NaN}',
            'dataset line 2: \'{"prompt": "b", "score": NaN}\' is not JSON '
            "(NaN is not a JSON number)",
        ),
        ("rows.jsonl", "[" * 100_000, "is not JSON (maximum recursion depth exceeded"),
        ("rows.jsonl", '"text"', "dataset line 1: 'text' is not a record of named fields"),
        (
            "rows.jsonl",
            '{"prompt": "a"}\n{"text": "b", "id": 1}',
            "dataset line 2: ['id', 'text'] has no 'prompt' column, or it is empty; "
            "set prompt_column in the job file to one of the columns",
        ),
        ("rows.jsonl", '{"prompt": ""}', "dataset line 1: ['prompt'] has no 'prompt' column"),
        (
            "rows.jsonl",
            b'{"prompt": "a"}\n{"prompt": "\xe9t\xe9"}\n',
            "dataset line 2: b'\\xe9' is not UTF-8; save the file as UTF-8",
        ),
        ("rows.jsonl", "\n \n", "rows.jsonl' holds no rows"),
        (
            "rows.json",
            '[\n {"prompt": "a"},\n {"prompt": "b"\n]',
            "dataset line 4: ']' is not JSON (Expecting ',' delimiter, column 1)",
        ),
        ("rows.json", '{"prompt": "a"}', "dataset: {'prompt': 'a'} is not a JSON list of records"),
        ("rows.json", '[{"prompt": "a"}, 2]', "dataset record 2: 2 is not a record"),
        ("rows.json", "[]", "rows.json' holds no rows"),
        (
            "rows.csv",
            "prompt,id\na,1\nb,2,3\n",
            "dataset line 3: ['3'] are more cells than the header has columns",
        ),
        ("rows.csv", 'prompt\n"a" b\n', "dataset line 2: "),
        ("rows.csv", 'prompt\n"a\n', "dataset line 2: 'unexpected end of data' is why this is not"),
        ("rows.csv", "prompt\n\n", "rows.csv' holds no rows"),
        ("rows.csv", "text,id\n,1\n", "dataset line 2: ['id', 'text'] has no 'text' column"),
        ("rows.txt", "a", "rows.txt' has an unknown format; use .jsonl, .json, .csv"),
    ],
)
def test_a_bad_dataset_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
):
    with pytest.raises(errors.InvalidInput) as refused:
        load_rows(write(tmp_path, name, content))
    assert message in str(refused.value)


def test_a_missing_label_names_its_own_setting_and_dataset(tmp_path: Path):
    file = write(tmp_path, "rows.jsonl", '{"prompt": "a"}')
    with pytest.raises(errors.InvalidInput) as refused:
        load_rows(file, label_column="answer", field="validation_dataset")
    assert str(refused.value) == (
        "validation_dataset line 1: ['prompt'] has no 'answer' column, or it is empty; "
        "set label_column in the job file to one of the columns"
    )


def test_a_folder_is_no_dataset(tmp_path: Path):
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(errors.InvalidInput, match="cannot be read: Is a directory"):
        load_rows(str(tmp_path / "rows.csv"))


# ── the column of the prompts ─────────────────────────────────────────────────────────────────


def test_without_a_prompt_column_the_first_column_is_taken(tmp_path: Path):
    named = write(tmp_path, "named.jsonl", '{"id": 1, "prompt": "go"}\n')
    other = write(tmp_path, "other.csv", "question,prompting,id\nwhy?,x,1\nhow?,y,2\n")

    assert [row.prompt for row in load_rows(named)] == ["go"]
    assert [row.prompt for row in load_rows(other)] == ["why?", "how?"]
    assert [row.prompt for row in load_rows(other, prompt_column="id")] == ["1", "2"]
    assert prompt_column_of(load_rows(named), "") == "prompt"
    assert prompt_column_of(load_rows(other), "") == "question"


# ── several files, and Parquet ────────────────────────────────────────────────────────────────


def test_several_files_are_read_one_after_the_other(tmp_path: Path):
    files = [
        DataFile(name="s3://b/1.jsonl", path=Path(write(tmp_path, "x", '{"prompt": "a"}\n'))),
        DataFile(name="s3://b/2.csv", path=Path(write(tmp_path, "y", "prompt\nb\n"))),
    ]
    assert [(row.index, row.prompt) for row in load_files(files)] == [(0, "a"), (1, "b")]


def test_an_error_in_one_of_several_files_says_which(tmp_path: Path):
    files = [
        DataFile(name="s3://b/1.jsonl", path=Path(write(tmp_path, "x", '{"prompt": "a"}\n'))),
        DataFile(name="s3://b/2.jsonl", path=Path(write(tmp_path, "y", '{"prompt": "b"\n'))),
    ]
    with pytest.raises(errors.InvalidInput, match=r"^dataset s3://b/2\.jsonl line 1: .* not JSON"):
        load_files(files)


def test_parquet_gives_the_rows_that_were_written(tmp_path: Path):
    file = tmp_path / "rows.parquet"
    table = pyarrow.table(
        {
            "prompt": ["a", "b"],
            "at": [datetime.date(2026, 1, 2), None],
            "weights": [[1.0, float("nan")], []],
            "raw": [b"x", b"\xff"],
        }
    )
    pyarrow.parquet.write_table(table, file)

    rows = load_rows(str(file))

    assert [row.prompt for row in rows] == ["a", "b"]
    assert rows[0].fields == {"prompt": "a", "at": "2026-01-02", "weights": [1.0, None], "raw": "x"}
    assert rows[1].fields == {"prompt": "b", "at": None, "weights": [], "raw": "\ufffd"}


def test_a_broken_parquet_file_is_refused_by_its_name(tmp_path: Path):
    file = write(tmp_path, "rows.parquet", "PAR1 but not really")
    with pytest.raises(errors.InvalidInput, match=r"^dataset: .*rows\.parquet' cannot be read: "):
        load_rows(file)


def test_parquet_without_its_reader_names_the_extra(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(errors.InvalidInput, match=r"pip install 'turnwise\[parquet\]'"):
        load_rows(write(tmp_path, "rows.parquet", "PAR1"))
