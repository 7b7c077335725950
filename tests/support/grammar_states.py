"""Recorded states of constrained decoding: a grammar, the tokens generated so far, and the tokens
allowed next.

`python -m tests.support.grammar_states` records them again. Half of each vocabulary's states come
from constrained answers of the embedded models, greedy and with beams; the others from random
answers.
"""

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from export.checkpoints.tensors import CheckpointTensors, write_decoder_weights
from export.checks.reference import Reference
from export.scenes import CANVAS_PX, render_scene, sample_scene
from laboratory.questions import question_prompts, questions
from runners.decoder.batch import generate_all
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from runners.tokens.constraints import Constraint, Constraints, ConstraintState
from tasks.families import FAMILIES
from tasks.parameters import parse_parameters
from tasks.table import TASKS, Family
from tests.support.catalog import CATALOG, RELEASED
from tests.support.export_cli import MODELS
from tests.support.real_tokenizers import fetch_tokenizer
from tests.support.token_choices import allowed_ids
from wire.artifacts.manifest import DECODER_FILE

TokenizerName = Literal["florence-2-mini", "paligemma-mini", "bart", "gemma"]
STATES_FILE = Path(__file__).with_name("grammar_states.json")
FAMILY_OF: dict[TokenizerName, Family] = {
    "florence-2-mini": "florence2",
    "bart": "florence2",
    "paligemma-mini": "paligemma",
    "gemma": "paligemma",
}
_MODEL_OF: dict[Family, TokenizerName] = {
    "florence2": "florence-2-mini",
    "paligemma": "paligemma-mini",
}
EOS_ID: dict[Family, int] = {"florence2": 2, "paligemma": 1}
NUM_STATES = 125  # for each vocabulary
_NUM_SCENES = 12
_NUM_BEAMS = 3
_MAX_NEW_TOKENS = 96
_MAX_WRITTEN = 48
_LABELS = (
    ["red circle", "star"],
    ["a", "ab", "abc"],
    ["größe (b)", "日本"],
    ['"x\\', "<loc0005>", "🙂"],
)
_RANDOM_PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "object_detection": [{}],
    "open_vocabulary_detection": [{"labels": labels} for labels in _LABELS],
    "region_proposal": [{}],
    "instance_segmentation": [{"phrase": "star"}],
    "ocr_with_regions": [{}],
    "region_description": [{"region": [1, 2, 30, 40]}],
}


@dataclass(frozen=True, slots=True)
class GrammarState:
    """One state, with the number of its allowed tokens and the hash of their ids."""

    tokenizer: TokenizerName
    task: str
    parameters: dict[str, Any]
    token_ids: list[int]
    num_allowed: int = 0
    allowed_hash: str = ""


def recorded_states(tokenizer: TokenizerName) -> list[GrammarState]:
    states = (GrammarState(**each) for each in json.loads(STATES_FILE.read_text(encoding="utf-8")))
    return [state for state in states if state.tokenizer == tokenizer]


def tokenizer_definition(name: TokenizerName) -> dict[str, Any] | None:
    """Return the values of a `tokenizer.json`, or None if it cannot be fetched."""
    if name == "bart" or name == "gemma":
        return fetch_tokenizer(name)
    definition: dict[str, Any] = json.loads(
        (MODELS / name / "tokenizer.json").read_text(encoding="utf-8")
    )
    return definition


def measured(state: GrammarState, constraints: Constraints) -> GrammarState:
    """Return the state with the tokens that are allowed now."""
    constraint = constraints.get(grammar_of(state))
    ids = allowed_ids(constraint, state_after(constraint, state.token_ids))
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
    return GrammarState(
        state.tokenizer, state.task, state.parameters, state.token_ids, len(ids), digest
    )


def grammar_of(state: GrammarState) -> str:
    parameters = parse_parameters(TASKS[state.task], state.parameters)
    family = FAMILY_OF[state.tokenizer]
    grammar = FAMILIES[family].answer_grammar(RELEASED[family], state.task, parameters)
    assert grammar is not None
    return grammar


def state_after(constraint: Constraint, token_ids: Iterable[int]) -> ConstraintState:
    """Return the state of an answer that consists of `token_ids`."""
    state = constraint.start()
    for token_id in token_ids:
        state = constraint.after(state, token_id)
    return state


def _record(folder: Path) -> None:
    states = []
    answers = {name: list(_model_answers(name, folder / name)) for name in _MODEL_OF.values()}
    for name, family in FAMILY_OF.items():
        rng = random.Random(name)
        definition = tokenizer_definition(name)
        assert definition is not None, f"the tokenizer {name} cannot be fetched"
        constraints = Constraints(definition, {EOS_ID[family]})
        model = _MODEL_OF[family]
        if name == model:
            written = answers[model]
        else:
            written = list(
                _retokenized(
                    answers[model], model, Tokenizer.from_str(json.dumps(definition)), name
                )
            )
        prefixes = [_prefix(answer, rng) for answer in rng.choices(written, k=NUM_STATES // 2)]
        prefixes += islice(
            _random_prefixes(name, constraints, definition, rng), NUM_STATES - len(prefixes)
        )
        states += [measured(state, constraints) for state in prefixes]
    lines = ",\n".join(json.dumps(asdict(state), ensure_ascii=False) for state in states)
    STATES_FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _model_answers(name: TokenizerName, folder: Path) -> Iterator[GrammarState]:
    """Yield an embedded model's answers to all constrained questions about some scenes."""
    entry = CATALOG[name]
    family = FAMILY_OF[name]
    reference = Reference.load(MODELS / name)
    shutil.copytree(MODELS / name, folder)
    write_decoder_weights(CheckpointTensors.open(MODELS / name), folder / DECODER_FILE)
    decoder = load_decoder(folder, family, "float32", "cpu")
    for seed in range(_NUM_SCENES):
        scene = sample_scene(seed)
        (features,) = reference.image_features([render_scene(scene, CANVAS_PX)])
        for question in questions(scene):
            asked = GrammarState(name, question.task, dict(question.parameters), [])
            parameters = parse_parameters(TASKS[question.task], question.parameters)
            if FAMILIES[family].answer_grammar(entry, question.task, parameters) is None:
                continue
            constraint = decoder.text.constraints.get(grammar_of(asked))
            for prompt in question_prompts(entry, question):
                ids = decoder.text.prompt_ids(
                    [(segment.text, segment.is_control) for segment in prompt.segments]
                )
                num_beams = 1 if seed % 2 else _NUM_BEAMS
                request = SequenceRequest(
                    features, ids, _MAX_NEW_TOKENS, num_beams=num_beams, constraint=constraint
                )
                (written,) = generate_all(decoder, [request])
                bos = decoder.rules.forced_bos_token_id
                token_ids = [
                    i
                    for i in written.token_ids
                    if i != bos and i not in decoder.rules.eos_token_ids
                ]
                yield GrammarState(name, question.task, dict(question.parameters), token_ids)


def _retokenized(
    answers: Iterable[GrammarState], model: TokenizerName, tokenizer: Tokenizer, name: TokenizerName
) -> Iterator[GrammarState]:
    """Yield the same answers, tokenized in another vocabulary."""
    own = Tokenizer.from_file(str(MODELS / model / "tokenizer.json"))
    for answer in answers:
        text = own.decode(answer.token_ids, skip_special_tokens=False)
        token_ids = tokenizer.encode(text, add_special_tokens=False).ids
        yield GrammarState(name, answer.task, answer.parameters, token_ids)


def _prefix(answer: GrammarState, rng: random.Random) -> GrammarState:
    length = rng.randint(0, min(len(answer.token_ids), _MAX_WRITTEN))
    return GrammarState(answer.tokenizer, answer.task, answer.parameters, answer.token_ids[:length])


def _random_prefixes(
    name: TokenizerName, constraints: Constraints, definition: dict[str, Any], rng: random.Random
) -> Iterator[GrammarState]:
    """Yield prefixes of random answers, endlessly; kinds of tokens, not tokens, are drawn
    uniformly.
    """
    family = FAMILY_OF[name]
    control = {token["id"]: token["content"][:4] for token in definition["added_tokens"]}
    offered = [task for task in _RANDOM_PARAMETERS if task in CATALOG[_MODEL_OF[family]].task_ids]
    while True:
        task = rng.choice(offered)
        start = GrammarState(name, task, rng.choice(_RANDOM_PARAMETERS[task]), [])
        constraint = constraints.get(grammar_of(start))
        state = constraint.start()
        written = list[int]()
        for _ in range(rng.randint(0, _MAX_WRITTEN)):
            kinds: dict[str, list[int]] = {}
            for token_id in allowed_ids(constraint, state):
                kinds.setdefault(control.get(token_id, "text"), []).append(token_id)
            kinds.pop(control[EOS_ID[family]], None)
            if not kinds:
                break
            written.append(rng.choice(kinds[rng.choice(sorted(kinds))]))
            state = constraint.after(state, written[-1])
        yield GrammarState(name, task, start.parameters, written)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        _record(Path(temporary))
