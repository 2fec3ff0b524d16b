"""What the embedded model cannot draw, told from the words of a request and from what its VLM sees in the images.

A prompt is read as a list of known phrases. What is left over, or joined in a way that was never trained, is named in a sentence.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..contracts import Request
from ..vlm.tiling import resize
from .spec import Describe

MAX_OBJECTS = 3
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 230),
    "yellow": (245, 220, 40),
    "purple": (140, 40, 170),
    "orange": (250, 130, 20),
    "cyan": (40, 210, 220),
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "brown": (100, 62, 30),
    "pink": (255, 190, 205),
}
CELLS = {
    "top left": (0, 0),
    "top": (0, 1),
    "top right": (0, 2),
    "left": (1, 0),
    "center": (1, 1),
    "right": (1, 2),
    "bottom left": (2, 0),
    "bottom": (2, 1),
    "bottom right": (2, 2),
}
# what an object is called, in one word or several; any of them is the noun of an object
_SHAPES = {
    "circle": ("circle", "circles", "round shape", "disc", "ball"),
    "square": ("square", "squares", "shape with four equal sides", "box"),
    "triangle": ("triangle", "triangles", "shape with three corners", "pyramid"),
    "star": ("star", "stars", "shape with five points"),
    "diamond": ("diamond", "diamonds", "rhombus", "kite"),
    "cross": ("cross", "crosses", "plus sign"),
    "": ("shape", "object"),
}
_THINGS = {
    "red": ("blood", "a tomato"),
    "green": ("grass", "a leaf"),
    "blue": ("the sea", "the sky"),
    "yellow": ("a banana", "the sun"),
    "purple": ("a plum", "grapes"),
    "orange": ("a carrot", "a pumpkin"),
    "cyan": ("ice", "turquoise"),
}
_SCENERY = {
    "white": ("in the snow",),
    "black": ("at night", "in the dark"),
    "gray": ("in the fog",),
    "brown": ("on wood", "on soil"),
    "pink": ("on bubblegum",),
}
_SIZES = {"small": ("small", "tiny", "little"), "big": ("big", "large", "huge")}
_RELATIONS = ("left of", "right of", "above", "over", "below", "under", "beneath")
_NUMBERS = {"two": 2, "2": 2, "three": 3, "3": 3}
# words, separated by spaces
_MORE = "four five six seven eight nine ten eleven twelve dozen hundred thousand many several multiple lots"
_NEGATIONS = "no not without never none neither nor except nothing cannot don't doesn't isn't aren't shouldn't avoid excluding"
# the words around objects in prompts
_JOINING = (
    "a an and also at background can center color colored colour coloured corner create draw drawing edge else "
    "generate give i image in is are it like make me middle of on one other paint picture please plus scene see "
    "should be show side somewhere that the there to want which with would you against front"
)
# more of them in edits
_EDITING = (
    "add alone away bigger bring but by caption change copy delete describe do enlarge erase everything first for from "
    "get go gone grow have increase insert instead into keep larger let move only order place put recolor reduce remove "
    "replace rid same say second set shift shrink size smaller so take them then they third this transform turn use "
    "what where"
)
# of edits: they take something away and are no negation
_TAKING_AWAY = ("i do not want", "do not want", "nothing but", "without")
# known in these phrases of edits alone
_EDIT_PHRASES = ("all of it", "the same as", "scale up", "scale down")
_ARTICLES = ("a", "an", "the", "other")
# joined by one of these, two objects are two; by nothing else
_SEPARATORS = {",", ";", ".", ":", "!", "?", "and", "with", "plus"}
_KNOWS = "It draws one to three circles, squares, triangles, stars, diamonds or crosses on a flat background"
# a few of the commonest words of languages that use Latin letters
_FOREIGN = {
    "German": "der die das ein eine einen einer und mit auf kreis roter rote rotes blauer grün oben unten links rechts stern",
    "French": "le la les un une des et avec sur rouge bleu vert cercle étoile carré noir blanc fond petit grand",
    "Spanish": "el los las una unos y con rojo azul verde círculo estrella cuadrado fondo pequeño grande sobre",
    "Italian": "il lo gli uno e con rosso blu cerchio stella quadrato sfondo piccolo",
    "Portuguese": "o os as um uma com vermelho azul círculo estrela quadrado fundo pequeno",
    "Dutch": "het een en met op rode blauwe cirkel ster vierkant achtergrond kleine grote",
}


@dataclass(frozen=True, slots=True)
class _Item:
    """A phrase of a prompt: what kind it is, what it means, and its words."""

    kind: str
    value: str
    text: str


def _phrase_table() -> dict[tuple[str, ...], tuple[str, str]]:
    """Words -> kind and meaning. The longest phrase wins."""
    table: dict[tuple[str, ...], tuple[str, str]] = {}

    def add(kind: str, value: str, texts: Iterable[str]) -> None:
        table.update({tuple(text.split()): (kind, value) for text in texts})

    add("join", "", _JOINING.split())
    for shape, texts in _SHAPES.items():
        add("shape", shape, texts)
    for color in COLORS:
        add("color", color, [color])
    for color, things in _THINGS.items():
        for thing in things:
            bare = thing.split()[-1]
            add("color", color, [f"{bare} coloured", f"{bare} colored"])
            add(
                "color",
                color,
                [
                    f"{w} {c} of {thing}"
                    for w in ("the", "in the", "with the", "of the")
                    for c in ("color", "colour")
                ],
            )
            add("color", color, [f"{c} of {thing}" for c in ("color", "colour")])
    add("color", "purple", [f"grape {c}" for c in ("coloured", "colored")])
    for name in BACKGROUNDS:
        add("ground", name, [name])
    add("ground", "gray", ["grey"])
    for name, texts in _SCENERY.items():
        add("scenery", name, texts)
    for size, texts in _SIZES.items():
        add("size", size, texts)
    add("relation", "", _RELATIONS)
    for number in _NUMBERS:
        add("number", number, [number])
    add("many", "", _MORE.split())
    add("many", "", (str(number) for number in range(4, 100)))
    add("negation", "", _NEGATIONS.split())
    for name in CELLS:
        add("place", name, _place_words(name))
    # relations that were never trained, whose words are known one by one
    add("unknown", "", ("on top of", "in between", "on the top of", "next to", "in front of"))
    for ground in (*BACKGROUNDS, "grey"):
        for article in ("", "a "):
            add(
                "ground of",
                "gray" if ground == "grey" else ground,
                [f"in front of {article}{ground} background"],
            )
    return table


def _place_words(name: str) -> list[str]:
    row, _, column = name.partition(" ")
    middle = ("center", "middle", "centre")
    if name == "center":
        return list(middle)
    if column:
        other = {"top": "upper", "bottom": "lower"}[row]
        return [f"{r} {column}{corner}" for r in (row, other) for corner in ("", " corner")]
    with_middle = [f"{m} {row}" if row in ("left", "right") else f"{row} {m}" for m in middle]
    return [row, f"{row} side", f"{row} edge", *with_middle]


_TABLE = _phrase_table()
_EDIT_TABLE = {
    **_TABLE,
    **{(word,): ("join", "") for word in _EDITING.split()},
    **{tuple(text.split()): ("join", "") for text in (*_TAKING_AWAY, *_EDIT_PHRASES)},
    ("one",): ("shape", ""),
    **{
        ("picture", n): ("image", str(i))
        for i, names in enumerate((("one", "1"), ("two", "2"), ("three", "3")))
        for n in names
    },
    **{(n, "picture"): ("image", str(i)) for i, n in enumerate(("first", "second", "third"))},
    **{("picture", n): ("image", str(i)) for i, n in ((3, "four"), (3, "4"), (4, "five"), (4, "5"))},
    **{(n, "picture"): ("image", str(i)) for i, n in ((3, "fourth"), (4, "fifth"))},
}
_LONGEST = max(map(len, _EDIT_TABLE))


def outside_of_tiny(request: Request, describe: Describe) -> tuple[str, ...]:
    """One sentence for each thing in a request that the embedded model was not trained to draw. Empty = it knows how.

    describe   the VLM's caption of an image; it is asked for only if there are images
    """
    if request.rewrite is not None:
        # the generator follows it word by word, and its words are checked like a prompt's
        return tuple(_outside_of_prompt(request.rewrite))
    if not request.images:
        return tuple(_outside_of_prompt(request.prompt))
    return tuple(_outside_of_edit(request, describe))


# Words --------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]|_", plain)


def _items(text: str, table: dict[tuple[str, ...], tuple[str, str]]) -> list[_Item]:
    words, items, at = _words(text), [], 0
    while at < len(words):
        for length in range(min(_LONGEST, len(words) - at), 0, -1):
            found = table.get(tuple(words[at : at + length]))
            if found:
                break
        else:
            length = 1
            found = ("mark", "") if words[at] in _SEPARATORS | {"'", '"', "-", "(", ")"} else ("unknown", "")
        items.append(_Item(*found, " ".join(words[at : at + length])))
        at += length
    return items


def _named(items: Iterable[_Item]) -> str:
    return ", ".join(f'"{text}"' for text in dict.fromkeys(item.text for item in items))


def _outside_of_prompt(text: str) -> Iterator[str]:
    items = _items(text, _TABLE)
    if not items:
        return
    unknown = [item for item in items if item.kind == "unknown"]
    if unknown:
        yield _unknown_sentence(text, unknown)
    if negations := [item for item in items if item.kind == "negation"]:
        yield f"This model does not understand negation ({_named(negations)}) and may draw what is named: name what to draw."
    yield from _miscounted(items)
    shapes = [item for item in items if item.kind == "shape"]
    if not shapes and not unknown:
        yield f"The prompt names no shape. {_KNOWS}."
    if unknown:
        # what else is odd may follow from the unknown words
        return
    yield from _miscolored(items)
    yield from _misjoined(items)
    yield from _misplaced(items)
    yield from _missized(items)


def _unknown_sentence(text: str, unknown: Sequence[_Item]) -> str:
    language = _language(text)
    told = f"This model does not know {_named(unknown)}"
    if language is None:
        return f"{told}: these words are ignored or drawn as something else. {_KNOWS}."
    return f"{told}: it reads English, and this looks like {language}. Write English."


def _language(text: str) -> str | None:
    words = set(_words(text))
    letters = [c for c in text if c.isalpha()]
    if letters and sum(not unicodedata.name(c, "").startswith("LATIN") for c in letters) > len(letters) / 3:
        return "another script"
    shares = {name: len(words & set(known.split())) for name, known in _FOREIGN.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= 2 else None


def _miscounted(items: Sequence[_Item]) -> Iterator[str]:
    many = [item for item in items if item.kind == "many"]
    if many:
        yield f"This model draws at most {MAX_OBJECTS} objects ({_named(many)} is more): ask for fewer."
        return
    if _count_objects(items) > MAX_OBJECTS:
        yield f"The prompt names {_count_objects(items)} objects, and this model draws at most {MAX_OBJECTS}: ask for fewer."


def _count_objects(items: Sequence[_Item]) -> int:
    """Objects that are named, with numbers; "the circle" after "a circle" is no new one."""
    named: Counter[str] = Counter()
    definite: Counter[str] = Counter()
    for index, item in enumerate(items):
        if item.kind != "shape":
            continue
        before = _phrase_before(items, index)
        number = next((_NUMBERS[each.value] for each in before if each.kind == "number"), 1)
        is_definite = any(each.text == "the" for each in before)
        (definite if is_definite else named)[item.value] += number
    return sum(named.values()) + sum(count for shape, count in definite.items() if not named[shape])


def _phrase_before(items: Sequence[_Item], index: int) -> list[_Item]:
    """The items of the noun phrase that ends in the shape at `index`, the shape left out."""
    start = index
    while start:
        before = items[start - 1]
        joins = before.text == "and" and start > 1 and items[start - 2].kind in ("color", "size")
        # "that is red and blue star": what follows "is" belongs to the object before
        if joins and start > 2 and items[start - 3].text in ("is", "in", "of"):
            break
        if (
            not joins
            and before.kind not in ("size", "color", "ground", "number")
            and before.text not in _ARTICLES
        ):
            break
        start -= 1
        if before.text in ("a", "an", "the"):
            break
    return list(items[start:index])


def _miscolored(items: Sequence[_Item]) -> Iterator[str]:
    """Backgrounds as colours of objects, the other way round, and two colours for one object."""
    for index, item in enumerate(items):
        following = items[index + 1] if index + 1 < len(items) else None
        if item.kind == "ground" and not _is_background(items, index):
            yield (
                f'"{item.text}" is a background to this model and no colour of an object: choose {_listed(COLORS)} for objects.'
            )
        if (
            item.kind == "color"
            and _is_background(items, index)
            and not (following and following.kind in ("shape", "size"))
        ):
            yield f'This model has no "{item.text}" background: choose {_listed(BACKGROUNDS)}.'
    grounds = {item.value for item in items if item.kind in ("ground", "scenery", "ground of")}
    if len(grounds) > 1 and all(
        _is_background(items, i) for i, item in enumerate(items) if item.kind == "ground"
    ):
        yield f"The prompt names {len(grounds)} backgrounds, and this model draws one flat one: name one."
    for index, item in enumerate(items):
        if item.kind == "shape":
            colors = [each for each in _phrase_before(items, index) if each.kind == "color"]
            if len(colors) > 1 and not _ends_a_phrase(items, index, colors[0]):
                yield f"The {item.text} has two colours ({_named(colors)}), and this model draws one for each object: name one."
    mentions = sum(item.kind == "shape" for item in items)
    colors = [item for item in items if item.kind == "color"]
    if len(colors) > mentions > 0:
        yield f"The prompt names more colours ({_named(colors)}) than objects, and this model draws one for each: name one."


def _ends_a_phrase(items: Sequence[_Item], index: int, color: _Item) -> bool:
    """Whether a colour before a shape belongs to the object before: "circle in red and blue star"."""
    place = max(i for i in range(index) if items[i] is color)
    return place > 0 and (
        items[place - 1].text in ("in", "of", "is", ",", "color", "colour", "the")
        or items[place - 1].kind == "shape"
    )


def _is_background(items: Sequence[_Item], index: int) -> bool:
    """Whether a colour's word is about the background: by the word itself, or by "on"."""
    after = [item.text for item in items[index + 1 : index + 3]]
    if after[:1] == ["background"]:
        return True
    before = [item.text for item in items[max(0, index - 8) : index]]
    tail = before[-3:]
    if tail[-1:] == ["on"]:
        following = items[index + 1] if index + 1 < len(items) else None
        return following is None or following.kind not in ("shape", "size", "color")
    if "background" not in before:
        return False
    gap = before[len(before) - 1 - before[::-1].index("background") + 1 :]
    return all(word in ("is", "should", "be", ":", "the", "to", "a", "=") for word in gap)


def _misjoined(items: Sequence[_Item]) -> Iterator[str]:
    """Two objects joined by something that was never trained."""
    last: int | None = None
    for index, item in enumerate(items):
        if item.kind != "shape":
            continue
        if last is not None:
            between = items[last + 1 : index]
            joined = any(each.kind == "relation" or each.text in _SEPARATORS for each in between)
            if not joined and not any(each.text in ("is", "there") for each in between):
                words = " ".join(each.text for each in items[last : index + 1])
                yield (
                    f'This model does not know how to join two objects as in "{words}": write and, with, left of, right of, '
                    "above or below between them."
                )
        last = index
    for index, item in enumerate(items):
        # "it" is placed by a relation alone: "a circle with a star above it"
        if item.text == "it" and not (index and items[index - 1].kind == "relation"):
            words = " ".join(each.text for each in items[max(0, index - 2) : index + 1])
            yield f'This model does not know what "{words}" means: place an object left of, right of, above or below it.'


def _misplaced(items: Sequence[_Item]) -> Iterator[str]:
    places = Counter(item.value for item in items if item.kind == "place")
    if len(places) > _count_objects(items) > 0:
        yield f"The prompt names more places ({_listed(places)}) than objects: name one for each."
    for place, count in places.items():
        if count > 1:
            yield f"The prompt puts {count} objects at one place ({place}), and this model draws one at each: move one."


def _missized(items: Sequence[_Item]) -> Iterator[str]:
    for index, item in enumerate(items):
        if item.kind == "shape":
            sizes = [each for each in _phrase_before(items, index) if each.kind == "size"]
            if len({each.value for each in sizes}) > 1:
                yield f"The {item.text} has two sizes ({_named(sizes)}): name one."


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


# Images -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shown:
    """An object of a caption."""

    size: str
    color: str
    shape: str
    cell: tuple[int, int]


_CAPTIONED = re.compile(
    rf"(small|big) ({'|'.join(COLORS)}) (circle|square|triangle|star|diamond|cross) at ({'|'.join(CELLS)})"
)


def _outside_of_edit(request: Request, describe: Describe) -> Iterator[str]:
    words = re.sub(
        r"\b(scale)\b(.*)\b(up|down)\b", r"scale \3 \2", request.prompt, flags=re.IGNORECASE | re.DOTALL
    )
    items = _items(words, _EDIT_TABLE)
    unknown = [item for item in items if item.kind == "unknown"]
    if unknown:
        yield _unknown_sentence(request.prompt, unknown)
    if negations := [item for item in items if item.kind == "negation"]:
        yield f"This model does not understand negation ({_named(negations)}) in an edit: write what to change or remove."
    yield from _miscounted([item for item in items if item.kind == "many"])
    seen: list[list[_Shown] | None] = []
    for number, image in enumerate(request.images):
        shown = objects_in(image, describe)
        seen.append(shown)
        if shown is None:
            which = f"Image {number + 1}" if len(request.images) > 1 else "The image"
            yield f"{which} is unlike those that this model was trained on, and it will be taken for coloured shapes. {_KNOWS}."
    if not unknown:
        yield from _miscolored_edit(items)
        if len(request.images) == 1:
            yield from _beyond_one_change(items, seen[0])
    yield from _missing(items, seen)


def _beyond_one_change(items: Sequence[_Item], shown: Sequence[_Shown] | None) -> Iterator[str]:
    """What an instruction about one image asks for beyond one change of one object or of the background."""
    texts = [item.text for item in items]
    numbers = [item for item in items if item.kind == "number"]
    if numbers:
        yield f"This model changes or adds one object at a time ({_named(numbers)} is more): ask for one."
    new = [
        i
        for i, item in enumerate(items)
        if item.kind == "shape" and any(t in ("a", "an") for t in _article(items, i))
    ]
    if (
        {"add", "insert", "also"} & set(texts)
        and shown is not None
        and len(shown) + max(1, len(new)) > MAX_OBJECTS
    ):
        yield f"The image shows {len(shown)} objects, and this model draws at most {MAX_OBJECTS}: remove one first."
    if "copy" in texts:
        yield "This model copies objects into another image only: add one instead, and describe it."
    if {"remove", "delete", "erase"} & set(texts) and "background" in texts:
        yield f"This model cannot remove a background: change it to {_listed(BACKGROUNDS)}."
    everything = {"everything", "all of it"} & set(texts)
    if everything and any(item.kind in ("color", "size") for item in items) and "but" not in texts:
        yield 'This model changes one object at a time, and "everything" is about the background alone: name an object.'
    if _lists_changes(items):
        yield "This model makes one change of one object at a time: ask for one after the other."
    if items and all(
        item.kind in ("size", "color", "shape") or item.text in ("a", "an", "the") for item in items
    ):
        yield f'"{" ".join(texts)}" does not say what to do: begin with make, add, remove, move, replace or only.'
    for before, after in zip(items[:-1], items[1:], strict=True):
        if before.kind == after.kind == "shape":
            yield f'This model does not know "{before.text} {after.text}": write turn the {before.text} into a {after.text}.'


def _article(items: Sequence[_Item], index: int) -> list[str]:
    return [item.text for item in _phrase_before(items, index)]


def _lists_changes(items: Sequence[_Item]) -> bool:
    """Whether "and" joins two objects or two properties; orders such as "describe in this order" may list objects."""
    texts = [item.text for item in items]
    if "order" in texts or "where" in texts:
        return False
    for index, item in enumerate(items):
        if item.text != "and" or index == 0 or "is" in texts[max(0, index - 2) : index]:
            continue
        before, after = items[index - 1], items[index + 1 :]
        names = [each.kind for each in after if each.kind in ("shape", "size", "color")]
        if before.kind in ("shape", "color", "size", "place") and names:
            # "the small and red circle" is one object
            one = [each.kind in ("color", "size") for each in after[:1]] + [
                each.kind == "shape" for each in after[1:2]
            ]
            return one != [True, True] or "the" not in texts[:index]
    return False


def _miscolored_edit(items: Sequence[_Item]) -> Iterator[str]:
    whole = any(item.text in ("background", "everything", "all", "it", "same") for item in items)
    for index, item in enumerate(items):
        following = items[index + 1] if index + 1 < len(items) else None
        if item.kind == "ground" and not _is_background(items, index) and not whole:
            yield f'"{item.text}" is a background to this model and no colour of an object: choose {_listed(COLORS)} for objects.'
        if (
            item.kind == "color"
            and _is_background(items, index)
            and not (following and following.kind in ("shape", "size"))
        ):
            yield f'This model has no "{item.text}" background: choose {_listed(BACKGROUNDS)}.'


def _missing(items: Sequence[_Item], seen: Sequence[list[_Shown] | None]) -> Iterator[str]:
    """Objects and images that an instruction refers to and that are not there."""
    for item in items:
        if item.kind == "image" and int(item.value) >= len(seen):
            yield f'The prompt names "{item.text}", and {len(seen)} image(s) were given: give it, or name another.'
    if any(shown is None for shown in seen):
        return
    everything = [each for shown in seen for each in shown or ()]
    if len(seen) == 1 and len(everything) > 1 and _says_it(items):
        yield f'"it" may be any of {len(everything)} objects ({_told(everything)}): name the one that you mean.'
    for index, item in enumerate(items):
        if item.kind != "shape":
            continue
        phrase = _phrase_before(items, index)
        if not _is_reference(items, index - len(phrase), phrase):
            continue
        size = next((each.value for each in phrase if each.kind == "size"), None)
        color = next((each.value for each in phrase if each.kind == "color"), None)
        ground = next((each for each in phrase if each.kind == "ground"), None)
        number = _image_behind(items, index)
        shown = everything if number is None or number >= len(seen) else seen[number] or []
        fits = [
            each
            for each in shown
            if (not item.value or each.shape == item.value)
            and (size is None or each.size == size)
            and (color is None or each.color == color)
            and ground is None
        ]
        if not fits:
            name = " ".join(each.text for each in [*phrase, item] if each.text not in ("the", "a", "an"))
            which = (
                "The images show"
                if len(seen) > 1 and number is None
                else f"Image {number + 1} shows"
                if number is not None
                else "The image shows"
            )
            yield f'There is no "{name}". {which} {_told(shown)}: name one of these.'


def _says_it(items: Sequence[_Item]) -> bool:
    """Whether an instruction is about "it", and neither about the background nor an object that it names."""
    return any(item.text == "it" for item in items[:3]) and not any(
        item.kind in ("ground", "scenery", "shape") for item in items
    )


def _is_reference(items: Sequence[_Item], start: int, phrase: Sequence[_Item]) -> bool:
    """Whether a noun phrase names something that an image shows: by "the", or as what is taken away."""
    before = [item.text for item in items[max(0, start - 2) : start]]
    if any(item.text == "the" for item in phrase):
        return before[-1:] not in (["into"], ["second"], ["other"])
    taken = (
        "remove",
        "delete",
        "erase",
        "away",
        "of",
        "without",
        "move",
        "shift",
        "recolor",
        "enlarge",
        "shrink",
        "want",
    )
    return (
        bool(before)
        and before[-1] in taken
        and before[-1] not in ("of", "want")
        and not any(
            item.text in ("a", "an")
            for item in phrase
            if before[-1] not in ("remove", "delete", "erase", "without")
        )
    )


def _image_behind(items: Sequence[_Item], index: int) -> int | None:
    """The number of the image in "the circle of picture two"."""
    for item in items[index + 1 : index + 5]:
        if item.kind == "image":
            return int(item.value)
        if item.kind not in ("color", "join", "place") or item.text in ("and", "into", "background", "on"):
            return None
    return None


def _told(shown: Sequence[_Shown]) -> str:
    return ", ".join(f"a {each.size} {each.color} {each.shape}" for each in shown) or "no shape"


def objects_in(image: Float[Tensor, "3 H W"], describe: Describe) -> list[_Shown] | None:
    """The objects of an image by the VLM's caption; None if the image is none of a few shapes on a flat background, or if the
    caption is not what its pixels show."""
    height, width = image.shape[1:]
    scale = 128 / min(height, width)
    small = resize(image, max(1, round(height * scale)), max(1, round(width * scale))) if scale < 1 else image
    ground, figure = _figure(small)
    if figure is None:
        return None
    *parts, last = describe(image).strip().rstrip(".").split(", ")
    matches = [_CAPTIONED.fullmatch(part) for part in parts]
    if not matches or None in matches or last.removesuffix(" background") != ground:
        return None
    shown = [_Shown(m[1], m[2], m[3], CELLS[m[4]]) for m in matches if m]
    return shown if _explains(shown, small, figure) else None


def _figure(image: Float[Tensor, "3 H W"]) -> tuple[str, Bool[Tensor, "H W"] | None]:
    """The background by name, and which pixels are none of it; None for an image without one flat background."""
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1) * 255
    middle = border.median(dim=1).values
    flat = ((border - middle[:, None]).norm(dim=0) < FLAT).float().mean() > FLAT_BORDER
    named = {
        name: (middle - torch.tensor(rgb, dtype=torch.float32)).norm() for name, rgb in BACKGROUNDS.items()
    }
    name = min(named, key=lambda each: float(named[each]))
    figure = (image * 255 - middle[:, None, None]).norm(dim=0) > CONTRAST
    if not flat or named[name] > FLAT or not figure.any() or figure.float().mean() > MOST_FIGURE:
        return name, None
    return name, figure


def _explains(shown: Sequence[_Shown], image: Float[Tensor, "3 H W"], figure: Bool[Tensor, "H W"]) -> bool:
    """Whether the objects of a caption are where the figure is, in their colours, and nothing is beside them."""
    height, width = figure.shape
    side = min(height, width)
    rows = torch.arange(height)[:, None]
    columns = torch.arange(width)[None]
    rest = figure.clone()
    for each in shown:
        y, x = (each.cell[0] + 0.5) / 3 * height, (each.cell[1] + 0.5) / 3 * width
        around = (rows - y).abs().maximum((columns - x).abs()) < REACH * side
        own = around & figure
        rgb = torch.tensor(COLORS[each.color], dtype=torch.float32)[:, None]
        if not own.any() or (image[:, own] * 255 - rgb).norm(dim=0).median() > COLOR_DISTANCE:
            return False
        rest &= ~around
    return bool(rest.float().sum() < STRAY * side * side)


# RGB distance, 0..255, within which a background is flat and bears its name
FLAT = 45.0
# share of the border that is background
FLAT_BORDER = 0.93
# RGB distance from the background of what belongs to an object
CONTRAST = 60.0
# share of the image: three big squares take 24 %
MOST_FIGURE = 0.35
# half of an object's square, share of the shorter side, with room for its offset
REACH = 0.2
# RGB distance of an object's typical pixel from its colour's name; the shade takes up to 35
COLOR_DISTANCE = 75.0
# share of the shorter side's square that may belong to no object
STRAY = 0.01
