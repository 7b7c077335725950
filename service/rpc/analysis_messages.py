"""Analyses from and to the messages of `service/rpc/proto/vision.proto`."""

from service.analysis.execution import Analysis, StepAnswer
from service.errors import ServiceError
from service.rpc.messages import answer_message, request_fields
from service.rpc.proto import vision_pb2 as pb
from service.schema.rendering import error_detail


def steps_document(request: pb.AnalyzeRequest) -> dict[str, object]:
    """Return the field `steps` as it is in JSON."""
    return {"steps": [request_fields(step) for step in request.steps]}


def analysis_message(analysis: Analysis, request_id: str) -> pb.Analysis:
    width, height = analysis.image_size_wh
    steps = []
    for step in analysis.steps:
        answers = [_step_answer(answer, request_id) for answer in step.answers]
        of_step = {"id": step.step.options.id, "task": step.step.task.id}
        steps.append(pb.StepAnswers(**of_step, truncated=step.is_truncated, answers=answers))
    return pb.Analysis(id=request_id, image=pb.Image(width=width, height=height), steps=steps)


def analysis_event(event: StepAnswer | Analysis, request_id: str) -> pb.AnalyzeEvent:
    if isinstance(event, Analysis):
        return pb.AnalyzeEvent(analysis=analysis_message(event, request_id))
    answer = pb.StepEvent(step=event.step_id, answer=_step_answer(event, request_id))
    return pb.AnalyzeEvent(answer=answer)


def _step_answer(answer: StepAnswer, request_id: str) -> pb.StepAnswer:
    outcome = answer.outcome
    message = pb.StepAnswer(of=answer.of, view=answer.view or (), model=answer.model.id)
    if isinstance(outcome, ServiceError):
        error = error_detail(outcome, request_id).model_dump()
        message.error.CopyFrom(pb.Error(**error))
    else:
        message.answer.CopyFrom(answer_message(outcome, request_id))
    return message
