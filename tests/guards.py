"""What somebody else's file, picture, page or place may try, what comes of it, and the test that holds it."""

from typing import NamedTuple


class Guard(NamedTuple):
    """An attempt, its outcome, and the test that fails where the outcome is another: ``test_file::test_name``."""

    attempt: str
    outcome: str
    test: str


PROVENANCE, CHANGES, TEXT, CHAIN = "test_provenance", "test_changes", "test_hostile_text", "test_chain"
GUARDS = (
    Guard(
        "a manifest beside a file that says the file is yours",
        "refused without `--trust`: whose a file is stands in your state directory",
        f"{PROVENANCE}::test_a_manifest_beside_a_file_opens_no_gate",
    ),
    Guard(
        "a run that was copied, cloned or unzipped",
        "a stranger's until `--trust`",
        f"{PROVENANCE}::test_a_copied_run_is_a_strangers_until_it_is_trusted",
    ),
    Guard(
        "one changed byte of a file that you wrote",
        "a stranger's",
        f"{PROVENANCE}::test_one_changed_byte_is_a_strangers",
    ),
    Guard(
        "a program that names a callable as its own code",
        "not called, with `--trust` neither",
        f"{PROVENANCE}::test_trust_lets_a_program_in_and_still_calls_nothing_that_it_names",
    ),
    Guard(
        "a program renamed `model.onnx`",
        "refused: formats are read from the bytes",
        f"{PROVENANCE}::test_a_name_that_its_bytes_belie_is_said",
    ),
    Guard(
        "a state directory that others can write",
        "counts for nothing",
        f"{PROVENANCE}::test_a_store_that_others_can_write_counts_for_nothing",
    ),
    Guard(
        "a new place in the code that loads or starts something",
        "the test fails until its gate is listed",
        f"{PROVENANCE}::test_every_place_that_loads_or_starts_something_is_listed",
    ),
    Guard(
        "`numpy.py` in the directory where a stage starts",
        "not imported",
        f"{CHAIN}::test_children_import_nothing_that_lies_where_they_are_started",
    ),
    Guard(
        "a stage whose parent is killed",
        "ends, and what it started with it",
        f"{CHAIN}::test_what_a_child_started_ends_with_it",
    ),
    Guard(
        "a PostScript file named `.png`",
        "refused: eight formats of pictures are read",
        "test_samples::test_a_picture_of_another_program_is_not_opened",
    ),
    Guard("links inside a run", "nothing is written through them", f"{CHANGES}::test_nothing_is_written_through_links"),
    Guard(
        "a directory that is no run, given as `--run`",
        "nothing in it is deleted or left",
        f"{CHANGES}::test_a_directory_that_is_no_run_stays_as_it_is",
    ),
    Guard(
        "names with escapes, line ends or invisible characters",
        "spelt out, one line each",
        f"{TEXT}::test_what_is_printed_holds_no_escapes",
    ),
    Guard("names that are HTML or Markdown", "shown as text", f"{TEXT}::test_documents_hold_no_html_of_others"),
    Guard("cells that a spreadsheet would calculate", "shown as text", f"{TEXT}::test_no_cell_of_csv_is_a_formula"),
    Guard(
        "a web page that asks `play` under another host name, or for other files",
        "403, 404",
        "test_play::test_only_what_the_page_is_made_of_is_served_and_to_its_own_name",
    ),
    Guard(
        "some 440 wrong arguments and files",
        "one line, a hint, exit code 2, nothing written",
        "test_bad_input::test_it_is_one_line_a_hint_and_exit_code_2",
    ),
)
