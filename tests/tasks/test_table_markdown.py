from tasks.table_markdown import task_table_markdown
from tests.support.catalog import FLORENCE, PALIGEMMA


def test_each_task_is_a_row_and_each_model_a_column() -> None:
    lines = task_table_markdown([FLORENCE, PALIGEMMA]).splitlines()
    assert lines[0] == "| task | parameters | florence-2-mini | paligemma-mini |"
    assert lines[1] == "| --- | --- | --- | --- |"
    assert lines[2] == "| `captioning` | [`detail`], [`language`] | yes | yes |"
    assert lines[5] == "| `phrase_grounding` | `caption` or `phrases` | yes | yes |"
    assert lines[11] == "| `region_description` | `region`, [`detail`] | yes |  |"
    assert lines[12] == "| `visual_question_answering` | `question`, [`language`] | yes | yes |"
    assert len(lines) == 13
