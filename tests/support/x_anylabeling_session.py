"""X-AnyLabeling's own window, without a screen, as a person uses it: `PYTHON
x_anylabeling_session.py JSON`.

It runs in the environment of the tool and imports nothing of ours. The argument is an object:
`url`, `key`, `image`, `folder` of the tool's settings, `steps`, and `picture`, the file for the
window after the first step. A step has `model`, `task`, and perhaps `text` or `rectangle`. The last
line of the output is a list: the models, and a list with shapes and description after each step.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_S = 60


class Session:
    """A window with an image, connected to a remote server."""

    def __init__(self, given: dict[str, Any]) -> None:
        import anylabeling.config as settings
        from anylabeling.resources import resources  # noqa: F401 - icons and models
        from anylabeling.views.labeling.utils.theme import get_app_stylesheet, init_theme
        from anylabeling.views.mainwindow import MainWindow
        from PyQt6 import QtWidgets

        settings.set_work_directory(given["folder"])
        settings.current_config_file = str(Path(given["folder"]) / ".xanylabelingrc")
        config = settings.get_config(settings.current_config_file, {}, show_msg=False)
        self.app = QtWidgets.QApplication(sys.argv[:1])
        init_theme("light")
        self.app.setStyleSheet(get_app_stylesheet())
        self.window = MainWindow(
            self.app, config=config, filename=given["image"], output_file=None, output_dir=None
        )
        self.window.resize(1280, 800)
        self.window.show()
        self.labelling = self.window.labeling_widget.view
        self.panel = self.labelling.auto_labeling_widget
        self.panel.show()
        self.manager = self.panel.model_manager
        self.num_finished = 0
        self.manager.prediction_finished.connect(self._count)

    def _count(self) -> None:
        self.num_finished += 1

    def wait(self, is_done: Callable[[], bool]) -> None:
        end_s = time.monotonic() + TIMEOUT_S
        while not is_done():
            if time.monotonic() > end_s:
                raise TimeoutError(self.panel.model_status_label.text())
            self.app.processEvents()
            time.sleep(0.01)

    def connect(self, url: str, key: str) -> list[str]:
        (config,) = (
            each["config_file"]
            for each in self.manager.model_configs
            if each["type"] == "remote_server"
        )
        self.manager.update_model_config(config, "server_url", url)
        self.manager.update_model_config(config, "api_key", key)
        self.manager.load_model(config)
        models = self.panel.remote_server_select_combobox
        self.wait(lambda: models.count() > 0)
        return [models.itemData(index) for index in range(models.count())]

    def run(self, step: dict[str, Any]) -> dict[str, Any]:
        for box, value in (
            (self.panel.remote_server_select_combobox, step["model"]),
            (self.panel.remote_task_select_combobox, step["task"]),
        ):
            box.setCurrentIndex(box.findData(value))
        num_finished = self.num_finished
        if "rectangle" in step:
            mark = {"type": "rectangle", "data": step["rectangle"], "label": 1}
            self.labelling.canvas.auto_labeling_marks_updated.emit([mark])
        elif "text" in step:
            self.panel.edit_text.setText(step["text"])
            self.panel.button_send.click()
        else:
            self.panel.button_run.click()
        self.wait(
            lambda: self.num_finished > num_finished and self.manager.model_execution_thread is None
        )
        return {
            "shapes": list(map(_shape, self.labelling.canvas.shapes)),
            "description": self._description(),
        }

    def _description(self) -> str:
        return str(self.labelling.other_data.get("description", ""))


def _shape(shape: Any) -> dict[str, Any]:
    points = [[point.x(), point.y()] for point in shape.points]
    return {"label": shape.label, "type": shape.shape_type, "points": points, "score": shape.score}


def main() -> None:
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    given = json.loads(sys.argv[1])
    session = Session(given)
    models = session.connect(given["url"], given["key"])
    first, *others = given["steps"]
    results = [session.run(first)]
    session.window.grab().save(given["picture"])
    results += map(session.run, others)
    print(json.dumps([models, results]), flush=True)
    os._exit(0)  # Qt's threads of the tool do not end with its window


main()
