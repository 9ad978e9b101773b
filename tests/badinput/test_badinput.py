"""Bad inputs: each ends as quarantine rows, a correct result or one clear error, as outcomes.txt says.

A third of the annotation cases and all that once went wrong run every time; BADINPUT=all runs all of them.
"""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.badinput.corpora import SCENES
from tests.badinput.spoil import KINDS
from tests.badinput.table import CASES, judge, read

REPO = Path(__file__).resolve().parents[2]
ONCE_WRONG = (
    "hcstvg/train_v2.0.img_num=10^30",
    "hcstvg/train_v2.0.img_num=10^400",
    "hcstvg/train_v2.0.img_size.0=10^400",
    "hcstvg/train_v2.0.bbox=10^5000",
    "hcstvg/row=boxes 1e308",
    "hcstvg/file 0 is a=pipe",
    "hcstvg/file 0=byte order mark",
    "hcstvg/video is a=pipe",
    "hcstvg/links=two up the tree, --follow-links",
    "a2d/video is a=folder",
    "a2d/row=instance of 5000 digits",
    "a2d/h5=external storage",
    "a2d/h5=virtual",
    "a2d/h5=external link box",
    "a2d/h5=ids 10^12",
    "a2d/h5=wide items",
    "a2d/h5=texts",
    "a2d/h5=box of inf",
    "a2d/h5=name huge",
    "a2d/a2d_annotation.txt=byte order mark",
    "vid_sentence/lists=index of 5000 digits",
    "vid_sentence/lists=byte order mark",
    "vid_sentence/ILSVRC2015_train_00000006.annotations.0.track.0.frame_size.0=10^400",
    "mevis/masks and names=10^5 mask ids",
    "mevis/file 0=byte order mark",
    "mevis/image is a=folder",
    "refsav/row=object of 5000 digits",
    "refsav/row=object of another spelling",
    "lasot/split.json=no lists",
    "lasot/box=1e308",
    "lasot/testing_set=sequence of 5000 digits",
    "lasot/sequence=folder not utf-8",
    "hcstvg/train_v2.whole=object",
    "hcstvg/file 0=two",
    "hcstvg/row=more boxes than frames",
    "hcstvg/video=another size",
    "vid_sentence/lists=empty",
    "vid_sentence/lists=one frame twice",
    "vid_sentence/image=another size",
    "mevis/meta_expressions.videos.0.expressions=object",
    "mevis/masks and names=size turned",
    "mevis/masks and names=size of another frame",
    "mevis/masks and names=frame twice",
    "mevis/file 1=tail",
    "refsav/Ref-SAV.0.objects=object",
    "refsav/file 0=tail",
    "refsav/video=2 x 2",
    "a2d/video=another size",
    "a2d/h5=name of words",
    "a2d/a2d_annotation.txt=empty",
    "a2d/a2d_annotation.txt=html",
    "lasot/nlp.txt=html",
    "lasot/testing_set.txt=empty",
    "lasot/testing_set.txt=not utf-8",
    "lasot/image=1 x 1",
    "got10k/meta_info.ini=html",
    "got10k/sequence=no labels",
    "got10k/list.txt=zeros",
    "got10k/anno_fps=999999999 400",
    "got10k/resolution=(99999999999 5005",
    "got10k/sequence=folder not utf-8",
)
LARGE = (
    "a2d/h5=mask 10^9 x 10^9",
    "a2d/h5=mask 10^9 deep",
    "a2d/h5=ids 10^12",
    "a2d/h5=boxes 10^12",
    "a2d/h5=wide items",
    "mevis/masks and names=size 10^9",
    "mevis/masks and names=size 10^9 x 1",
    "mevis/masks and names=counts endless",
    "mevis/file 0=deep objects",
    "mevis/meta_expressions.whole=deep",
    "hcstvg/row=img_num 10^9",
    "hcstvg/row=size 10^9",
    "vid_sentence/lists=frames far apart",
    "vid_sentence/image=jpeg of 65535 x 65535",
    "lasot/image=bmp of 30000 x 30000",
    "lasot/image=png of 10^9 x 10^9",
    "got10k/image=png of 31623 x 31623",
    "got10k/image=bomb",
    "got10k/image=jpeg of 9000 x 9000",
    "got10k/image=webp",
    "hcstvg/video=a png of 10^9 x 10^9",
    "hcstvg/video=size in the header 2^16",
    "hcstvg/video=sample count 2^32",
    "refsav/row=frames 10^6",
    "hcstvg/video=motion jpeg of 16000 x 16000",
    "lasot/nlp.txt=one long line",
    "got10k/groundtruth.txt=one long line",
)
"""Cases that ask for more memory than there should be."""
EXPECTED = read()


def now() -> list[str]:
    if os.environ.get("BADINPUT") == "all":
        return list(CASES)
    return [name for name in CASES if name in ONCE_WRONG or zlib.crc32(name.encode()) % 3 == 0]


def test_the_corpus_is_large_and_covers_every_source_and_every_kind_of_medium():
    assert len(CASES) > 1000
    assert len(now()) >= 300
    assert EXPECTED.keys() == CASES.keys()
    for source in SCENES:
        assert sum(case.source == source for case in CASES.values()) >= 100
        for what in KINDS:
            assert any(case.source == source and case.name == what for case in CASES.values())
    assert {*ONCE_WRONG, *LARGE} <= CASES.keys()


def test_the_corpora_are_good_before_they_are_spoilt():
    assert not set(EXPECTED.values()) & {"", "stage_error"}
    for source in SCENES:
        assert any(
            words in ("ok*2", "ok*4")
            for name, words in EXPECTED.items()
            if name.startswith(f"{source}/")
        )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", now())
def test_a_bad_input_ends_as_the_table_says(name):
    assert judge(CASES[name]) == EXPECTED[name]


@pytest.mark.timeout(120)
def test_large_inputs_stay_below_a_gigabyte():
    done = subprocess.run(
        [sys.executable, "-m", "tests.badinput", *LARGE],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(line.split("\t") for line in done.stdout.splitlines())
    assert found == {name: EXPECTED[name] for name in LARGE}
