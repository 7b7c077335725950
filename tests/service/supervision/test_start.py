from service.__main__ import process_environment


def test_no_library_reports_to_its_makers() -> None:
    environment = process_environment({"PATH": "/bin"})
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["BENTOML_DO_NOT_TRACK"] == "True"
    assert environment["PATH"] == "/bin"


def test_what_an_operator_says_of_threads_stays() -> None:
    assert process_environment({"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE"
