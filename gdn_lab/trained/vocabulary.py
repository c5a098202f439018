"""The words of the generated language: a token is a word.

256 names (bada, bade, …), the numbers zero to sixty-three, and a few words that join them into statements.
"""

PAD, IS, TAKES, ASK, CALC, PLUS, MINUS, TIMES, MAKES = range(9)
JOINING = ("_", "is", "takes", "ask", "calc", "plus", "minus", "times", "makes")
OPERATIONS = (PLUS, MINUS, TIMES)

NUMBERS = 64
FIRST_NUMBER = len(JOINING)
NAMES = 256
FIRST_NAME = FIRST_NUMBER + NUMBERS

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty")
_SYLLABLES = [consonant + vowel for consonant in "bdkm" for vowel in "aeio"]


def _number(value: int) -> str:
    if value < len(_ONES):
        return _ONES[value]
    return _TENS[value // 10] + (f"-{_ONES[value % 10]}" if value % 10 else "")


WORDS = (
    *JOINING,
    *(_number(value) for value in range(NUMBERS)),
    *(first + second for first in _SYLLABLES for second in _SYLLABLES),
)
