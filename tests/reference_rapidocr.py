# SPDX-License-Identifier: AGPL-3.0-only
"""`python reference_rapidocr.py PICTURE…`: what the RapidOCR of this process reads in each, as JSON lines."""

import json
import sys
from typing import Any

from rapidocr import RapidOCR


def main() -> None:
    """Its own weights, out of its wheel, and no download."""
    engine = RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})
    for picture in sys.argv[1:]:
        read: Any = engine(picture)
        boxes = [] if read.boxes is None else read.boxes.tolist()
        print(json.dumps({"texts": list(read.txts or ()), "boxes": boxes, "scores": list(read.scores or ())}))


if __name__ == "__main__":
    main()
