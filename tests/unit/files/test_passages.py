"""What stands before a question, and what an answer cites."""

from pathlib import Path

from citadel_llm.api.files.passages import HEAD, QUESTION, citations_of, fitting, put_before
from citadel_llm.api.files.search import Found

PAGE = Path(__file__).resolve().parents[3] / "docs/files.md"


def found(n, text="text"):
    return Found("vs_1", f"file-{n}", f"{n}.txt", 0, 1.0 / n, {}, text)


def test_the_page_shows_the_template_as_it_is():
    shown = put_before([found(1, "the passage")._replace(filename="handbook.pdf")]) + "the user's text"
    assert shown in PAGE.read_text()


def test_passages_are_numbered_and_no_name_breaks_its_line():
    text = put_before([found(1), found(2)._replace(filename='a"b\nc')])
    assert text == f'{HEAD}[1] from "1.txt"\ntext\n\n[2] from "a b c"\ntext\n\n{QUESTION}'


def test_each_number_is_a_citation_where_it_stands():
    cited = citations_of("One [1], two [2], one again [1], none [7] [0].", [found(1), found(2)])
    assert [(one["index"], one["file_id"]) for one in cited] == [(4, "file-1"), (13, "file-2"), (28, "file-1")]


def test_without_numbers_each_file_is_cited_once_at_the_end():
    cited = citations_of("No numbers.", [found(1), found(2), found(1)])
    assert sorted((one["index"], one["file_id"]) for one in cited) == [(11, "file-1"), (11, "file-2")]
    assert citations_of("", [found(1)]) == []
    assert citations_of("text", []) == []


def test_as_many_passages_as_there_is_room_for():
    passages = [found(n, "x" * 100) for n in range(1, 5)]
    assert fitting(passages, 250) == passages[:2]
    assert [len(one.text) for one in fitting(passages, 40)] == [40]
    assert fitting([], 100) == []
