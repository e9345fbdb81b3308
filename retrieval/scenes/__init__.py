"""Images for the demo, drawn by code: the same things seen in different rooms, angles and light.

An instance-retrieval set whose answers are known, so that a machine without photos and without a network can try the
search and see at once whether it is right. Every image depends on the seed and on nothing else.

    canvas                               pens that count in the image's own units
    posters, paintings, boxes, signs     flat fronts with a word; a book has a small poster for its cover
    things                               what is looked for: its faces and its size
    camera                               a pinhole camera, and how it sees a flat texture
    walls, props, places                 rooms and streets around the thing
    shoot, light, photo                  one image: aimed, lit, saved with a camera's EXIF
    plan, draw                           which images there are, and the folder that holds them

World coordinates are metres: x to the right, y up, z from the back wall (z = 0) towards the viewer.
"""

from .draw import draw_scenes

__all__ = ["draw_scenes"]
