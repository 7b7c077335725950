"""A conversation of OpenAI's API becomes an image and the fields of a request.

The last message asks. A text is a prompt in the model's own syntax (`<OD>`, `detect cat`), or else
a question. Follow-up questions are about the latest image.
"""

from collections.abc import Mapping

from service.errors import InvalidRequest
from service.http.body import parse_image
from service.images.url_rules import ImageInput
from service.inference.core import Core, Fields
from service.openai.wire import ChatRequest, ImagePart, TextPart
from tasks.errors import ParameterError
from tasks.families import FAMILIES
from tasks.prompts import AskedTask

_OPTIONS = ("model", "temperature", "top_p", "seed")


def image_of(chat: ChatRequest) -> ImageInput:
    """Return the one image of the latest message that has an image."""
    for message in reversed(chat.messages):
        if message.role != "user":
            continue
        urls = [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
        if len(urls) > 1:
            raise InvalidRequest(f"a message has {len(urls)} image_url parts; send one", "messages")
        if urls:
            return parse_image(urls[0])
    raise InvalidRequest("no message of the user has an image_url part; send one", "messages")


def fields_of(chat: ChatRequest, core: Core) -> Fields:
    """Return the fields of POST /v1/predict with the meaning of the last message."""
    last = chat.messages[-1]
    if last.role != "user":
        raise InvalidRequest(f"the last message is of {last.role}; it must be of user", "messages")
    texts = [part.text for part in last.content if isinstance(part, TextPart)]
    if len(texts) != 1:
        problem = f"the last message has {len(texts)} text parts; send one"
        raise InvalidRequest(problem, "messages")
    text = texts[0]
    try:
        entry = core.models.get(chat.model).entry
        asked = FAMILIES[entry.family].read_prompt(entry, text)
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error
    # a text that is not a prompt of the model is a question
    asked = asked or AskedTask("visual_question_answering", {"question": text})
    fields = {
        "task": asked.task_id,
        **asked.values,
        **{name: getattr(chat, name) for name in _OPTIONS},
    }
    fields["max_new_tokens"] = chat.max_completion_tokens or chat.max_tokens
    shares = asked.region_shares
    if shares is None:
        return fields

    def with_region(size_wh: tuple[int, int]) -> Mapping[str, object]:
        region = [share * side for share, side in zip(shares, size_wh * 2, strict=True)]
        return fields | {"region": region}

    return with_region
