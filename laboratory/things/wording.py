"""The words of a scene's lines: English and invented words in the Latin alphabets of the languages
of the task table, numbers, prices, and the lines of signs, receipts and forms.
"""

from collections.abc import Sequence
from pathlib import Path

from numpy.random import Generator

MAX_LINES = 6
MAX_WORDS = 12
# Letters of each language beyond a to z (tasks/table.py, those in Latin script).
ALPHABETS = {
    "cs": "áčďéěíňóřšťúůýž",
    "da": "æøå",
    "de": "äöüß",
    "en": "",
    "es": "áéíñóúü",
    "fi": "äöå",
    "fil": "ñ",
    "fr": "àâçéèêëîïôùûœ",
    "hr": "čćđšž",
    "hu": "áéíóöőúüű",
    "id": "",
    "it": "àèéìòù",
    "mi": "āēīōū",
    "nl": "ëïé",
    "no": "æøå",
    "pl": "ąćęłńóśźż",
    "pt": "áâãàçéêíóôõú",
    "ro": "ăâîșț",
    "sv": "åäö",
    "sw": "",
    "tr": "çğıöşü",
    "vi": ("ăâđêôơưáàảãạấầẩẫậắằẳẵặéèẻẽẹếềểễệíìỉĩịóòỏõọốồổỗộớờởỡợúùủũụứừửữựýỳỷỹỵ"),
}
_ENGLISH = Path(__file__).with_name("words.txt").read_text(encoding="ascii").split()
_FIELDS = ("Name", "Date", "City", "Street", "Phone", "Order", "Room", "Total", "Table", "No.")
_PUNCTUATION = ("", "", "", "", "!", "?", ".", ",", ":")
_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"


def word(rng: Generator, letters: str) -> str:
    """Return a word, a number or a code; `letters` are a language's own, none for English."""
    kind = rng.random()
    if kind < 0.12:
        return str(rng.integers(1, 10 ** rng.integers(1, 6)))
    if kind < 0.22:
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
        return "".join(_any(rng, alphabet) for _ in range(rng.integers(2, 7)))
    text = _any(rng, _ENGLISH) if kind < 0.6 and not letters else _invented(rng, letters)
    case = rng.random()
    if case < 0.3:
        return text.upper()
    return text.capitalize() if case < 0.6 else text


def free_line(rng: Generator, letters: str, num_words: int) -> str:
    """Return words, sometimes with a mark at the end."""
    words = " ".join(word(rng, letters) for _ in range(num_words))
    return words + _any(rng, _PUNCTUATION)


def receipt_line(rng: Generator, letters: str) -> str:
    """Return `Milk 1.20`."""
    separator = "." if rng.random() < 0.5 else ","
    price = f"{rng.integers(0, 100)}{separator}{rng.integers(0, 100):02}"
    text = _invented(rng, letters) if letters else _any(rng, _ENGLISH)
    return f"{text.upper() if rng.random() < 0.5 else text.capitalize()} {price}"


def form_line(rng: Generator, letters: str) -> str:
    """Return `Name: Ana`."""
    return f"{_any(rng, _FIELDS)}: {word(rng, letters)}"


def _invented(rng: Generator, letters: str) -> str:
    text = []
    for index in range(int(rng.integers(2, 9))):
        text.append(_any(rng, _CONSONANTS if index % 2 else _VOWELS + _CONSONANTS))
    if letters:
        for _ in range(int(rng.integers(1, 3))):
            text[int(rng.integers(len(text)))] = _any(rng, letters)
    return "".join(text)


def _any(rng: Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]
