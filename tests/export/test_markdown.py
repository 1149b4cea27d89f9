import itertools

from mosrt_export.markdown import WIDTH, refilled


def test_lines_are_even_and_nothing_is_lost() -> None:
    words = " ".join(f"word{i}" for i in range(60))
    text = f"# A heading\n\nShort\nlines {words}\nmore.\n\n- item one\n  goes on {words}\n- two\n"
    filled = refilled(text)
    assert filled.split() == text.split()
    lines = filled.splitlines()
    assert lines[0] == "# A heading"
    assert max(map(len, lines)) <= WIDTH
    # every line is as full as its next word allows
    paragraph = lines[2 : lines.index("", 2)]
    for line, following in itertools.pairwise(paragraph):
        assert len(line) + 1 + len(following.split()[0]) > WIDTH
    assert "- two" in lines
    assert all(line.startswith(("- ", "  ")) for line in lines[lines.index("", 2) + 1 :])


def test_tables_and_a_second_filling_change_nothing() -> None:
    table = f"| {'a' * 120} | b |\n|---|---|\n| 1 | 2 |\n"
    assert refilled(f"Text\n\n{table}\nText\n") == f"Text\n\n{table}\nText\n"
    once = refilled("- " + "x y " * 80 + "\n")
    assert refilled(once) == once
