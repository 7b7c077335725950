"""What a request costs a model, in tokens, known before any work is done. It knows requests and models."""

from collections.abc import Sequence

from service.inference.request_fields import TaskRequest
from service.inference.served_models import ServedModel
from tasks.prompts import Prompt

_CHARACTERS_PER_TOKEN = 4  # of English; the tokenizers are the runners'
_USUAL_NEW_TOKENS = 256  # where a request says nothing: a checkpoint's own limit is far above its answers


def cost_tokens(model: ServedModel, request: TaskRequest, prompts: Sequence[Prompt]) -> int:
    """Return the tokens of image, prompt and answer, of all prompts together, by estimate."""
    new = request.options.max_new_tokens or _USUAL_NEW_TOKENS
    num_characters = sum(len(segment.text) for prompt in prompts for segment in prompt)
    return len(prompts) * (model.manifest.num_image_tokens + new) + num_characters // _CHARACTERS_PER_TOKEN
