from service.process_options import process_environment


def test_telemetry_of_libraries_is_off() -> None:
    environment = process_environment({"PATH": "/bin"})
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["BENTOML_DO_NOT_TRACK"] == "True"
    assert environment["PATH"] == "/bin"


def test_environment_overrides_the_defaults() -> None:
    assert process_environment({"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE"
