"""The words of the scenes, and their grammar in English and Chinese (shown in the package's docstring)."""

from __future__ import annotations

from collections.abc import Sequence

Texts = dict[str, str]
"""language -> text."""

HIDDEN_BELOW = 0.92

COLORS: dict[str, tuple[tuple[int, int, int], str]] = {
    "red": ((214, 40, 40), "红色"),
    "orange": ((244, 134, 20), "橙色"),
    "yellow": ((245, 220, 40), "黄色"),
    "green": ((40, 160, 60), "绿色"),
    "blue": ((40, 80, 215), "蓝色"),
    "purple": ((140, 50, 180), "紫色"),
    "black": ((25, 25, 28), "黑色"),
    "white": ((248, 248, 245), "白色"),
}
"""colour -> RGB, Chinese word."""

SHAPES: dict[str, tuple[str, Texts]] = {
    "circle": ("圆形", {"en": "a round shape with no corners", "zh": "没有角的圆的图形"}),
    "square": ("正方形", {"en": "a shape with four equal sides and four corners", "zh": "有四条等边和四个角的图形"}),
    "triangle": ("三角形", {"en": "a shape with three sides and three corners", "zh": "有三条边和三个角的图形"}),
    "star": ("五角星", {"en": "a shape with five pointed arms", "zh": "有五个尖角的图形"}),
    "cross": ("十字形", {"en": "a shape of two bars that cross", "zh": "两条直条交叉成的图形"}),
    "ring": ("圆环", {"en": "a round band with a hole in the middle", "zh": "中间有孔的圆带"}),
    "heart": ("心形", {"en": "a shape with two round lobes and a point", "zh": "有两个圆瓣和一个尖的图形"}),
    "crescent": ("月牙形", {"en": "a thin curved shape like the young moon", "zh": "像新月的弯的图形"}),
}
"""shape -> Chinese word, definition."""

SIZES: dict[str, tuple[float, str]] = {"small": (0.11, "小"), "medium": (0.17, "中等大小"), "large": (0.25, "大")}
"""size -> radius as a share of the picture's shorter side, Chinese word."""

PLACES: tuple[tuple[str, str], ...] = (
    *(("top left", "左上方"), ("top", "上方"), ("top right", "右上方")),
    *(("left", "左侧"), ("center", "中央"), ("right", "右侧")),
    *(("bottom left", "左下方"), ("bottom", "下方"), ("bottom right", "右下方")),
)
"""Cells of the 3 x 3 grid, row by row."""

SIDES: dict[str, tuple[str, str]] = {
    "left": ("left of", "左边"),
    "right": ("right of", "右边"),
    "above": ("above", "上面"),
    "below": ("below", "下面"),
}

ACTIONS: dict[str, tuple[str, str]] = {
    "still": ("stays still", "静止不动"),
    "stop": ("stops", "停下"),
    **{f"move {way}": (f"moves {way}", f"向{zh}移动") for way, zh in (("left", "左"), ("right", "右"), ("up", "上"), ("down", "下"))},
    **{
        f"turn {way}": (f"turns and moves {way}", f"转弯并向{zh}移动")
        for way, zh in (("left", "左"), ("right", "右"), ("up", "上"), ("down", "下"))
    },
    "leave": ("leaves the picture", "离开画面"),
    "return": ("comes back", "回到画面"),
}
"""action -> English and Chinese predicate."""


def label(color: str, shape: str) -> Texts:
    """`red circle`, `红色圆形`."""
    return {"en": f"{color} {shape}", "zh": COLORS[color][1] + SHAPES[shape][0]}


def definition(shape: str) -> Texts:
    """What the shape is."""
    return dict(SHAPES[shape][1])


def caption(size: str, name: Texts) -> Texts:
    """`A small red circle.`; name: the label."""
    return {"en": f"A {size} {name['en']}.", "zh": f"一个{SIZES[size][1]}的{name['zh']}。"}


def description(size: str, name: Texts, place: int, hidden: bool, neighbour: tuple[str, Texts] | None) -> Texts:
    """Attributes, place (index of PLACES), visibility and relation. neighbour: (key of SIDES, its label), None when there is none."""
    en = [f"A {size} {name['en']} at the {PLACES[place][0]}."]
    zh = [f"{PLACES[place][1]}有一个{SIZES[size][1]}的{name['zh']}。"]
    if hidden:
        en.append("It is partly hidden.")
        zh.append("它被遮住了一部分。")
    if neighbour is None:
        en.append("It is alone.")
        zh.append("它独自在那里。")
    else:
        side, other = neighbour
        article = "an" if other["en"][0] in "aeiou" else "a"
        en.append(f"It is {SIDES[side][0]} {article} {other['en']}.")
        zh.append(f"它在{other['zh']}的{SIDES[side][1]}。")
    return {"en": " ".join(en), "zh": "".join(zh)}


def told(name: Texts, actions: Sequence[str]) -> Texts:
    """`The red circle moves right, then stops.`: one action is an event, several are a clip; keys of ACTIONS."""
    en = ", then ".join(ACTIONS[action][0] for action in actions)
    zh = "，然后".join(ACTIONS[action][1] for action in actions)
    return {"en": f"The {name['en']} {en}.", "zh": f"{name['zh']}{zh}。"}
