"""Scenes: pictures and clips of coloured shapes with exact truth, for training, tests and demos without any download.

What a scene can show is in `words`, how it is drawn in `draw`, which scenes there are in `compose` and `motion`, and `dataset`
writes them as a datagen dataset with its media. Everything follows from a seed, through generators whose numbers are the same in
every version (random.Random.random, numpy's RandomState).

The grammar of the texts, in both languages, is that of `words`; here in English:

    label        COLOR SHAPE                                        red circle
    definition   one fixed sentence per shape                       a round shape with no corners
    caption      A SIZE LABEL.                                      A small red circle.
    description  A SIZE LABEL at the PLACE. [It is partly hidden.]  A small red circle at the top left. It is left of a
                 It is SIDE a LABEL. | It is alone.                 blue star.
    event        The LABEL ACTION.                                  The red circle moves right.
    clip         The LABEL ACTION{, then ACTION}.                   The red circle moves right, then stops.

SIZE says which share of the picture's shorter side the circle around the shape has. PLACE is the cell of a 3 x 3 grid that the
shape's centre lies in. The neighbour is the shape whose centre is nearest; SIDE is the direction from it to the shape along the
axis on which they are further apart. A shape is partly hidden when less than `words.HIDDEN_BELOW` of it is seen.
"""

from datagen.scenes.compose import random_scene, scene_seed
from datagen.scenes.dataset import encode_video, write_scenes
from datagen.scenes.draw import Rendered, Scene, Shape, render
from datagen.scenes.motion import Clip, random_clip, render_clip

__all__ = [
    "Clip",
    "Rendered",
    "Scene",
    "Shape",
    "encode_video",
    "random_clip",
    "random_scene",
    "render",
    "render_clip",
    "scene_seed",
    "write_scenes",
]
