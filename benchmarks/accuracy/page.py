"""The page "Results" of the documentation, and what the README says of them, from the raw files.

python -m benchmarks.accuracy.page            # writes docs/results.md and README.md
python -m benchmarks.accuracy.page --check    # ends with 1 where they are not what the raw files say
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.accuracy.figure import write_figures
from benchmarks.accuracy.others import PICTURES, table1_section, tasks_section
from benchmarks.accuracy.plan import RESULTS, Study, load_plan
from benchmarks.accuracy.results import AHEAD, BEHIND, Comparison, Records, compare, load_records
from benchmarks.accuracy.stripes import load_stripes, stripes_section
from benchmarks.accuracy.tables import cost, difference, markdown, not_run, study_section

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
BEGIN = "<!-- accuracy: written by python -m benchmarks.accuracy.page -->"
END = "<!-- end of accuracy -->"

HEAD = """# Results: does it help, by how much, and on what

This page is written by `python -m benchmarks.accuracy.page` from the [raw files](../benchmarks/accuracy/results), one
for each run. What is trained, what is compared and how it is judged was fixed in the
[plan](../benchmarks/accuracy/plan.yaml) before the first run. Nulls stand beside gains, and what was not run is listed
at the end.

How to read it:

- **Accuracy** is in percent, on the 10,000 test images of CIFAR-100 after the *last* epoch: mean ± standard deviation
  over seeds. No image is held out, and nothing is chosen by the test images. ASR is judged folded, as it is deployed.
- **Differences** are in points and paired by seed. The two runs of a pair share the backbone's start, the order of the
  images, their augmentation and the noise.
- **Bold** comparisons are the primary ones, fixed beforehand. The verdict is `result` if the 95 % interval excludes 0,
  with its direction (`ahead`: the first is better; `behind`: the second is), and `null` otherwise. The other
  comparisons are described and not tested.
- **A null** says that these runs do not show a difference. Its interval says how large one could still be.

The recipe is that of the reference code, shortened in proportion. Networks trained so briefly stay below published
figures, and figures of 4 and of 16 epochs are not comparable with each other.
"""


def render(folder: Path = RESULTS) -> str:
    """The page.

    Args:
        folder: Of the raw files.
    """
    studies = load_plan()
    records = load_records(studies, folder)
    parts = [HEAD.strip(), "## In short", headline(studies, records), "## Accuracy"]
    parts += [
        study_section(study, records) for study in studies.values() if not study.needs_gpu or _any(study, records)
    ]
    parts += _picture(folder, "curves", "test accuracy over the epochs")
    parts += ["## Stripes over a whole training", STRIPES.strip()]
    parts += _picture(folder, "stripes", "the gates over the epochs")
    parts += [stripes_section(studies, load_stripes(studies, folder))]
    parts += ["## Real tasks", tasks_section(folder), "## Table 1 again", table1_section(folder)]
    parts += ["## What was not run", not_run(studies, records), "## What it took", cost(records)]
    return "\n\n".join(parts) + "\n"


STRIPES = """
The gates of every network with dynamic attention are observed after each epoch on the same 512 test images, with the
measures of [stripes](explanation/stripes.md). That attention values "quickly approach constant vectors" (the paper)
can mean two things, and the tables tell them apart: every *image* gets the same vector (an index near 1, a small
deviation), or the vectors stand still from *epoch to epoch* (a small change; under a learning rate that falls,
everything does so). Two figures have a floor: with 512 images of 100 classes, the class explains 0.19 of the variance
by chance; and if all channels move alike, one channel in sixteen holds 0.06 of it. A gate that is the same for every
image has no variance to share out; such a seed is left out of the share of the class.
"""


def _picture(folder: Path, name: str, words: str) -> list[str]:
    """A link to a picture, where it was drawn."""
    return [f"![{words}]({PICTURES}/{name}.png)"] if (folder / f"{name}.png").exists() else []


def _any(study: Study, records: Records) -> bool:
    return any(name == study.name for name, _, _ in records)


def headline(studies: Mapping[str, Study], records: Records) -> str:
    """The primary comparisons of every study that was begun, a row each.

    Args:
        studies: The plan.
        records: What is there.
    """
    rows = []
    for study in studies.values():
        found = [each for each in compare(study, records) if each.primary]
        if study.needs_gpu and not any(each.pairs for each in found):
            continue
        rows += [headline_row(study, each) for each in found]
    return markdown(["question", "difference in points [95 %]", "pairs", "verdict"], rows)


def headline_row(study: Study, found: Comparison) -> list[str]:
    """One comparison in words.

    Args:
        study: Its study.
        found: The comparison.
    """
    return [
        f"{study.title}: {found.first} - {found.second}",
        difference(found.difference),
        f"{found.pairs} of {found.planned}",
        found.verdict if found.pairs == found.planned else "open",
    ]


def readme_block(records: Records, studies: Mapping[str, Study]) -> str:
    """What the README says about accuracy: how much is measured, and the primary comparisons that have pairs.

    Args:
        records: What is there.
        studies: The plan.
    """
    main = studies["main"]
    found = [each for each in compare(main, records) if each.primary]
    text = progress(records, studies, found)
    if any(each.pairs for each in found):
        rows = [headline_row(main, each) for each in found]
        for row in rows:
            row[0] = row[0].rpartition(": ")[2]
        head = ["CIFAR-100, ResNet-20, 16 epochs", "difference in points [95 %]", "pairs", "verdict"]
        text += "\n\n" + markdown(head, rows)
    return f"{BEGIN}\n{text}\n{END}"


def progress(records: Records, studies: Mapping[str, Study], found: Sequence[Comparison]) -> str:
    """How far the measurement of accuracy has got, and what follows from it.

    Args:
        records: What is there.
        studies: The plan.
        found: The primary comparisons of the main study.
    """
    begun = {study.name: study for study in studies.values() if not study.needs_gpu}
    planned = sum(len(study.configurations) * len(study.seeds) for study in begun.values())
    there = sum(name in begun for name, _, _ in records)
    complete = sum(each.pairs == each.planned for each in found)
    text = (
        f"Results are being collected: {there} of {planned} planned runs on CIFAR-100 are finished, and {complete} of "
        f"the {len(found)} main comparisons are complete."
    )
    ahead = [each.second for each in found if each.verdict == AHEAD]
    behind = [each.second for each in found if each.verdict == BEHIND]
    if ahead:
        text += f" ASR(SE) is ahead of: {', '.join(ahead)}."
    else:
        text += " **stripefold claims no gain in accuracy**: no comparison shows one."
    if behind:
        text += f" ASR(SE) is behind: {', '.join(behind)}."
    text += " `scale` is a plain learned factor per channel that starts where ASR's gates do."
    return "\n".join(textwrap.wrap(text, 120))


def with_block(text: str, block: str) -> str:
    """A text whose marked part is replaced.

    Args:
        text: It.
        block: The new part, with its marks.

    Raises:
        ValueError: The marks are not there.
    """
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the text has no part between {BEGIN} and {END}")
    return pattern.sub(lambda _: block, text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    studies = load_plan()
    if not options.check:
        for file in write_figures(load_records(studies), load_stripes(studies)):
            print(f"written: {file.relative_to(ROOT)}")
    readme = README.read_text(encoding="utf-8")
    wanted = {PAGE: render(), README: with_block(readme, readme_block(load_records(studies), studies))}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not options.check:
            path.write_text(wanted[path], encoding="utf-8")
        print(f"{'stale' if options.check else 'written'}: {path.relative_to(ROOT)}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
