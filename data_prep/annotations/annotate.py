"""The whole way of an annotation: read, matched, checked, stored; or left out with its reason."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.annotations.masks import TOLERANCE, decode_segmentation
from data_prep.annotations.match import SKIP, UNNAMED, Videos, read_categories
from data_prep.annotations.reasons import LeftOut
from data_prep.update import changing, read_rows, update_videos
from deepcoro.errors import DataError
from deepcoro.reports.vocabulary import SEGMENTS

KINDS = ("auto", "boxes", "masks")
UNNAMED_LEVEL = 255  # of a vessel in a mask that is of no named segment
_HUGE = 1e6  # pixels; no picture is that large
_SAME_SHAPE = 0.01  # by which the aspect ratios of picture and video may differ; shrinking rounds to whole pixels

Frame = tuple[str, int]  # a video and the number of its frame, from 0
Refused = tuple[Any, Any, str]  # ids of the annotation and of its image, and the reason


@dataclass(frozen=True)
class Summary:
    """What became of a file. ``num_annotations`` = ``num_boxes`` + ``num_masks`` + ``num_skipped`` + ``left_out``.

    Args:
        num_skipped: left out because the user said so (``--category NAME=skip``).
        left_out: ids of the annotation and of its image, and the reason.
        num_overlapping: pixels that two masks claim; the later in the file has them.
        fingerprint: of the dataset before and after; None where nothing was written.
    """

    num_images: int
    num_annotations: int
    num_boxes: int
    num_masks: int
    num_skipped: int
    num_frames: int
    num_videos: int
    num_overlapping: int
    left_out: list[Refused]
    fingerprint: tuple[str, str] | None

    @property
    def reasons(self) -> dict[str, int]:
        """How many were left out for what."""
        return dict(Counter(reason for *_, reason in self.left_out).most_common())


def annotate(
    coco: Path,
    dataset: str,
    *,
    sources: Path | None = None,
    categories: Sequence[str] = (),
    kind: str = "auto",
    first_frame: int = 0,
    dry_run: bool = False,
) -> Summary:
    """Bring the annotations of a COCO file into a prepared dataset.

    Boxes go into the column ``boxes`` of `videos.parquet`, as fractions of width and height. Masks go to
    `masks/<video_id>/<frame>.png`, one grey level a segment (1 to 18 in the order of the vocabulary, 255 where no
    segment is named, 0 elsewhere) at the size of the video, and the video's attribute ``mask_frames`` names the frames.
    A frame that the file has boxes for loses those it had, and likewise with its mask: the same file twice changes
    nothing.

    Args:
        coco: The file.
        dataset: Folder of the dataset.
        sources: The door's table of which file became which video.
        categories: ``NAME=SEGMENT``, see ``read_categories``.
        kind: ``boxes`` takes each annotation's bbox, ``masks`` its segmentation, ``auto`` its segmentation if it has
            one, else its bbox.
        first_frame: What the file calls a video's first frame.
        dry_run: Only say what would be done.

    Raises:
        DataError: a file or the dataset cannot be read or written, or no annotation can be used; then nothing changed.
    """
    content = _read_coco(coco)
    segment_of = read_categories(content["categories"], categories)
    own = {video.get("id"): str(video.get("file_name") or video.get("name")) for video in content["videos"]}
    images = {image.get("id"): image for image in content["images"]}
    boxes: dict[Frame, list[dict[str, Any]]] = defaultdict(list)
    masks: dict[Frame, np.ndarray] = {}
    numbers: Counter[str] = Counter()
    left_out: list[Refused] = []
    with changing(dataset) as folder:
        videos = Videos(read_rows(folder, "videos"), sources, own)
        seen: set[str] = set()
        for annotation in content["annotations"]:
            try:
                with _malformed():
                    image = images.get(annotation["image_id"])
                    category = annotation["category_id"]
                    segment = segment_of.get(category)
                if segment == SKIP:
                    numbers["skipped"] += 1
                    continue
                if image is None:
                    raise LeftOut("unknown_image")
                if segment is None:
                    raise LeftOut("unknown_category")
                video, frame = videos.find(image, first_frame)
                size = _size_of(image, video)
                place = (video["video_id"], frame)
                as_mask = kind == "masks" or (kind == "auto" and bool(annotation.get("segmentation")))
                _only_once(seen, place, category, annotation.get("segmentation" if as_mask else "bbox"))
                if as_mask:
                    if not annotation.get("segmentation"):
                        raise LeftOut("no_segmentation")
                    video_size = (video["height"], video["width"])
                    mask = decode_segmentation(annotation["segmentation"], size, video_size)
                    labels = masks.setdefault(place, np.zeros(video_size, np.uint8))
                    numbers["overlapping"] += int(np.count_nonzero(labels[mask]))
                    labels[mask] = UNNAMED_LEVEL if segment == UNNAMED else 1 + SEGMENTS.index(segment)
                    numbers["masks"] += 1
                else:
                    corners = _corners(annotation.get("bbox"), size)
                    named = None if segment == UNNAMED else segment
                    boxes[place].append({"segment": named, "frame": frame, **corners})
                    numbers["boxes"] += 1
            except LeftOut as error:
                ids = annotation if isinstance(annotation, dict) else {}
                left_out.append((ids.get("id"), ids.get("image_id"), error.reason))
        if not boxes and not masks:
            told = ", ".join(f"{reason} {n}" for reason, n in Counter(r for *_, r in left_out).most_common())
            raise DataError(
                f"{coco}: none of {len(content['annotations'])} annotations can be used ({told or 'empty'})"
            )
        fingerprint = None
        if not dry_run:
            _write_masks(folder, masks)
            fingerprint = update_videos(folder, _changes(videos.rows, boxes, masks))
    return Summary(
        num_images=len(content["images"]),
        num_annotations=len(content["annotations"]),
        num_boxes=numbers["boxes"],
        num_masks=numbers["masks"],
        num_skipped=numbers["skipped"],
        num_frames=len(boxes.keys() | masks.keys()),
        num_videos=len({video_id for video_id, _ in boxes.keys() | masks.keys()}),
        num_overlapping=numbers["overlapping"],
        left_out=left_out,
        fingerprint=fingerprint,
    )


def _read_coco(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is no JSON file that can be read: {error}") from error
    names = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in names):
        raise DataError(f"{path}: a COCO file is an object with the lists {', '.join(names)}")
    content.setdefault("videos", [])
    for name in ("images", "categories", "videos"):
        ids = [item.get("id") if isinstance(item, dict) else None for item in content[name]]
        if any(isinstance(number, (list, dict)) or number is None for number in ids) or len(set(ids)) < len(ids):
            raise DataError(f"{path}: each of its {name} must be an object with an id of its own")
    return content


@contextmanager
def _malformed() -> Iterator[None]:
    try:
        yield
    except (TypeError, KeyError, AttributeError) as error:
        raise LeftOut("malformed") from error


def _only_once(seen: set[str], place: Frame, category: Any, shape: Any) -> None:
    written = json.dumps([place, category, shape], sort_keys=True)
    if written in seen:
        raise LeftOut("duplicate")
    seen.add(written)


def _size_of(image: Mapping[str, Any], video: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in whose pixels the picture is annotated: its own, if told, and of the video's shape."""
    height, width = image.get("height"), image.get("width")
    if height is None or width is None:
        return video["height"], video["width"]
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise LeftOut("other_shape")
    if abs(width * video["height"] / (height * video["width"]) - 1) > _SAME_SHAPE:
        raise LeftOut("other_shape")
    return height, width


def _corners(bbox: Any, size: tuple[int, int]) -> dict[str, float]:
    """A bbox [x, y, width, height] in pixels -> corners as fractions; what reaches out by up to a pixel is cut."""
    if bbox is None or bbox == []:
        raise LeftOut("no_box")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(number) in (int, float) for number in bbox):
        raise LeftOut("bad_box")
    x, y, width, height = bbox
    if not all(abs(number) < _HUGE for number in bbox) or width <= 0 or height <= 0:  # nor is NaN below anything
        raise LeftOut("bad_box")
    if min(x, y) < -TOLERANCE or x + width > size[1] + TOLERANCE or y + height > size[0] + TOLERANCE:
        raise LeftOut("box_outside")
    corners = {"x0": x / size[1], "y0": y / size[0], "x1": (x + width) / size[1], "y1": (y + height) / size[0]}
    corners = {name: min(max(value, 0.0), 1.0) for name, value in corners.items()}
    if corners["x1"] <= corners["x0"] or corners["y1"] <= corners["y0"]:  # all of it lay outside
        raise LeftOut("box_outside")
    return corners


def _write_masks(folder: Path, masks: Mapping[Frame, np.ndarray]) -> None:
    """A PNG each. A mask is written beside and then put in place; the table comes after all of them."""
    for (video_id, frame), labels in masks.items():
        if Path(video_id).name != video_id or video_id in (".", ".."):
            raise DataError(f"{folder}/videos.parquet: video_id {video_id!r} cannot be the name of a folder")
        path = folder / "masks" / video_id / f"{frame}.png"
        partial = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(partial, "PNG", optimize=True)
            partial.replace(path)
        except OSError as error:
            raise DataError(f"{path}: the mask cannot be written ({error.strerror or error})") from error


def _changes(
    rows: Mapping[str, Mapping[str, Any]],
    boxes: Mapping[Frame, list[dict[str, Any]]],
    masks: Mapping[Frame, np.ndarray],
) -> dict[str, dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = defaultdict(dict)
    for video_id in {video_id for video_id, _ in boxes}:
        kept = [box for box in rows[video_id]["boxes"] or [] if (video_id, box["frame"]) not in boxes]
        new = [box for (owner, _), found in boxes.items() if owner == video_id for box in found]
        changes[video_id]["boxes"] = sorted(kept + new, key=lambda box: box["frame"])
    for video_id in {video_id for video_id, _ in masks}:
        before = dict(rows[video_id]["attributes"] or []).get("mask_frames", "").split()
        frames = {int(frame) for frame in before} | {frame for owner, frame in masks if owner == video_id}
        changes[video_id]["attributes"] = {"mask_frames": " ".join(map(str, sorted(frames)))}
    return changes
