"""The errors that end one sequence and touch no other."""

from wire.runner_messages import FailureCode


class SequenceError(Exception):
    """One sequence failed, alone.

    SequenceError
    ├── NonFiniteLogits     the model computed NaN or infinity for it
    ├── DeadlineExceeded    the deadline passed before its end
    ├── SequenceTooLong     prompt and new tokens do not fit the model's positions
    ├── TooManyBeams        it needs more beams than the decoder has slots
    ├── UnknownAdapter      it names an adapter that the runner has not loaded
    ├── UnknownToken        its prompt needs a control token that the checkpoint does not have
    ├── GrammarError        its grammar is malformed, or failed while it was written
    └── Overloaded          too many sequences are queued
    """

    code: FailureCode = "internal"


class NonFiniteLogits(SequenceError):
    """The model computed NaN or infinity for this sequence."""

    code = "non_finite_logits"


class DeadlineExceeded(SequenceError):
    """The deadline passed before the end of this sequence."""

    code = "deadline_exceeded"


class SequenceTooLong(SequenceError):
    """Prompt and new tokens do not fit the model's positions."""

    code = "sequence_too_long"


class TooManyBeams(SequenceError):
    """The request needs more beams than the decoder has slots."""

    code = "too_many_beams"


class UnknownAdapter(SequenceError):
    """The request names an adapter that the runner has not loaded."""

    code = "unknown_adapter"


class UnknownToken(SequenceError):
    """The prompt needs a control token that the checkpoint does not have."""

    code = "unknown_token"


class Overloaded(SequenceError):
    """Too many sequences are queued."""

    code = "overloaded"


class GrammarError(SequenceError):
    """The grammar is malformed, names an unknown token, or failed at a token."""
