"""Every layout in circulation is planned as the official one is, or what is said about it helps."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline
from flows.forecast import Forecast, plan_advice, settle_counts
from flows.jobs import make_jobs
from flows.progress import Quiet
from manifests.catalog import query
from pipeline.plan import Job, build_plan, plan_items
from pipeline.presets import configure
from pipeline.sources import SOURCES, hints
from pipeline.sources.base import DataRoot, load_source
from schemas.records import Planned, Quarantined
from tests.pipeline.sources.layouts import LAYOUTS, Layout

HIDDEN = ("._{name}", ".DS_Store")


def laid_out(layout: Layout, corpus: Path, top: Path) -> Path:
    """The files of the corpus in another layout."""
    root = top / "alone" / "deep" / layout.source
    official = corpus / layout.source
    for path in sorted(official.rglob("*")):
        relative = path.relative_to(official).as_posix()
        begin = next((b for b in layout.moves if relative.startswith(b)), None)
        beginning = "" if begin is None else layout.moves[begin]
        if path.is_dir() or beginning is None:
            continue
        place = root / (beginning + relative.removeprefix(begin or ""))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    for name, text in layout.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def planned(job: Job) -> tuple[list[tuple], dict]:
    """Captions, videos, spans and annotated boxes of a split, and the forecast of what will be skipped."""
    looking = Forecast(job)
    counts = build_plan(job, watch=looking.see, save=False)
    source, rows = job.load(), []
    for item in plan_items(job):
        if isinstance(item, Planned):
            for referent in item.referents:
                try:
                    boxes = source.annotate(job.root, item.clip, referent).boxes.tobytes()
                except Quarantined as problem:
                    boxes = problem.reason
                rows.append((item.clip.video_id, len(item.clip), referent.caption, boxes))
    return sorted(rows, key=str), looking.row(counts)


def jobs_of(source: str, root: Path, tmp_path: Path) -> dict[str, Job]:
    jobs = make_jobs(source, root, tmp_path / "out", configure("lite"))
    return {job.split: job for job in jobs}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one.source}: {one.name}")
def test_a_layout_is_planned_as_the_official_one_or_explained(layout, corpus, tmp_path):
    root = laid_out(layout, corpus, tmp_path)
    if layout.hint:
        assert layout.hint in advice_of(layout.source, root, tmp_path)
        return
    official = jobs_of(layout.source, corpus / layout.source, tmp_path)
    found = jobs_of(layout.source, root, tmp_path)
    assert list(found) == list(layout.same)
    for split, like in layout.same.items():
        rows, forecast = planned(found[split])
        expected_rows, expected = planned(official[like])
        assert rows == expected_rows
        assert (forecast["skip"], forecast["media"]) == (expected["skip"], expected["media"])


def advice_of(source: str, root: Path, tmp_path: Path) -> str:
    """All that a user is told who plans this root."""
    try:
        jobs = list(jobs_of(source, root, tmp_path).values())
        rows = [planned(job)[1] for job in jobs]
    except ValueError as error:
        return str(error)
    return "\n".join(plan_advice(jobs, rows))


@pytest.mark.parametrize("source", SOURCES)
def test_hidden_files_are_ignored_everywhere(source, corpus, tmp_path):
    """macOS leaves a `._name` beside each file of an archive, and a .DS_Store in each folder."""
    root = tmp_path / "alone" / "deep" / source
    shutil.copytree(corpus / source, root)
    for path in sorted(root.rglob("*")):
        folder = path if path.is_dir() else path.parent
        for name in HIDDEN:
            (folder / name.format(name=path.name)).write_bytes(b"\0\x05\x16\x07")
    (root / "__MACOSX").mkdir()
    shutil.copytree(root, tmp_path / "again")
    official = jobs_of(source, corpus / source, tmp_path)
    for split, job in jobs_of(source, root, tmp_path).items():
        assert planned(job) == planned(official[split])


SUFFIXES = {"vid_sentence": ".jpg", "lasot": ".jpeg", "mevis": ".png", "got10k": ".JPG"}


@pytest.mark.parametrize("source", SUFFIXES)
def test_pictures_with_another_suffix_are_found(source, corpus, tmp_path):
    root = tmp_path / source
    shutil.copytree(corpus / source, root)
    for path in sorted(root.rglob("*.[jJ][pP]*[gG]")):
        path.rename(path.with_suffix(SUFFIXES[source]))
    for split, job in jobs_of(source, root, tmp_path).items():
        rows, forecast = planned(job)
        expected_rows, expected = planned(jobs_of(source, corpus / source, tmp_path)[split])
        assert (rows, forecast["skip"]) == (expected_rows, expected["skip"])
        names = {
            i.clip.media.image(i.clip.start)[-5:] for i in plan_items(job) if isinstance(i, Planned)
        }
        assert all(name.endswith(SUFFIXES[source]) for name in names)


def test_a_video_with_another_suffix_is_found(corpus, tmp_path):
    root = tmp_path / "hcstvg"
    shutil.copytree(corpus / "hcstvg", root)
    for path in sorted(root.rglob("*.mkv")):
        path.rename(path.with_suffix(".mp4"))
    official = jobs_of("hcstvg", corpus / "hcstvg", tmp_path)
    for split, job in jobs_of("hcstvg", root, tmp_path).items():
        assert planned(job)[1]["skip"] == planned(official[split])[1]["skip"]


LOST = [
    ("hcstvg", "video/part_1/2_956c5F844eb.mkv", "media_missing"),
    ("a2d", "Release/clips320H/95bd79D77ce.mp4", "media_missing"),
    ("lasot", "cat/cat-2/img/00000001.jpg", "media_missing"),
    ("lasot", "cat/cat-2/out_of_view.txt", "annotation_missing"),
    ("mevis", "train/mask_dict.json", "annotation_missing"),
    ("got10k", "train/GOT-10k_Train_000022/absence.label", "annotation_missing"),
    ("got10k", "train/GOT-10k_Train_000022/cover.label", "annotation_missing"),
    ("refsav", "sam_v_full/sav_train/sav_000/sav_000026.mp4", "media_missing"),
]


@pytest.mark.parametrize(("source", "file", "reason"), LOST)
def test_a_plan_counts_what_curation_will_drop(source, file, reason, corpus, tmp_path):
    """Each file that curation opens; where all other clips are whole, only those of the lost file are counted."""
    root = tmp_path / source
    shutil.copytree(corpus / source, root)
    jobs = jobs_of(source, root, tmp_path)
    split = "train"
    before = planned(jobs[split])[1]
    (root / file).unlink()
    after = planned(jobs_of(source, root, tmp_path)[split])[1]
    lost = after["skip"].get(reason, 0) - before["skip"].get(reason, 0)
    assert lost >= 1
    assert after["quarantined"] == before["quarantined"] + lost
    assert file.rsplit("/", 1)[-1].rsplit(".", 1)[0] in after["examples"][reason]


def test_a_link_that_is_not_followed_is_named_with_the_option(corpus, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(corpus / "mevis", elsewhere)
    root = tmp_path / "alone" / "deep" / "mevis"
    root.mkdir(parents=True)
    (root / "train").symlink_to(elsewhere / "train")
    advice = advice_of("mevis", root, tmp_path)
    assert (
        f"--follow-links: train is a link to {elsewhere / 'train'}, outside the data root" in advice
    )
    jobs = make_jobs("mevis", root, tmp_path, configure("lite"), follow_links=True)
    assert [job.split for job in jobs] == ["train"]


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("mevis", "train/JPEGImages"),
        ("hcstvg", "video"),
        ("vid_sentence", "data/ILSVRC/Data/VID/train"),
    ],
)
def test_media_behind_a_link_are_counted_as_skipped(source, folder, corpus, tmp_path):
    root = tmp_path / "alone" / "deep" / source
    shutil.copytree(corpus / source, root)
    (root / folder).rename(tmp_path / "elsewhere")
    (root / folder).symlink_to(tmp_path / "elsewhere")
    job = jobs_of(source, root, tmp_path)["train"]
    forecast = planned(job)[1]
    referents = forecast["referents"]
    official = planned(jobs_of(source, corpus / source, tmp_path)["train"])[1]
    assert forecast["media"] == "none"
    assert forecast["quarantined"] == referents + sum(job_rejections(job).values())
    assert f"--follow-links: {folder} is a link" in "\n".join(plan_advice([job], [forecast]))
    followed = job.model_copy(update={"follow_links": True})
    assert planned(followed)[1]["skip"] == official["skip"]
    assert planned(followed)[1]["media"] == official["media"]


def job_rejections(job: Job) -> Counter[str]:
    return Counter(str(i.reason) for i in plan_items(job) if not isinstance(i, Planned))


def test_the_text_file_that_a_checkout_makes_of_a_link_is_recognised(corpus, tmp_path):
    root = tmp_path / "alone" / "deep" / "mevis"
    shutil.copytree(corpus / "mevis", tmp_path / "alone" / "deep" / "elsewhere")
    root.mkdir()
    (root / "valid_u").write_text("../elsewhere/valid_u")
    advice = advice_of("mevis", root, tmp_path)
    assert f"ln -sfn ../elsewhere/valid_u {root / 'valid_u'}" in advice
    assert "--follow-links" in advice


def test_folders_that_may_not_be_read_are_passed_over(tmp_path, monkeypatch):
    """As in /proc, and in the home folders of others."""
    closed = tmp_path / "closed"
    closed.mkdir()
    real = os.listdir

    def listdir(path=".") -> list[str]:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(hints.os, "listdir", listdir)
    text = hints.explain(load_source("hcstvg"), DataRoot(tmp_path))
    assert text.startswith(f"no hcstvg annotations under {tmp_path}.\nfound: closed/")


def test_the_root_of_the_file_system_has_the_usual_message(tmp_path):
    with pytest.raises(
        ValueError, match=r"(?s)no hcstvg annotations under /\..*found: .*expected:"
    ):
        make_jobs("hcstvg", "/", tmp_path, configure("lite"))


def curated_reasons(source: str, root: Path, tmp_path: Path) -> Counter[str]:
    """Reasons in quarantine after a curation of everything."""
    out = tmp_path / "curated"
    jobs = make_jobs(source, root, out, configure("lite", ["media.media=none"]))
    driver.run(jobs, Inline(), Quiet())
    found: Counter[str] = Counter()
    for row in query(out, "SELECT reason FROM quarantine"):
        found[row["reason"]] += 1
    return found


FIRST_H5 = "text_annotations/a2d_annotation_with_instances/95bd79D77ce/00003.h5"
TROUBLE = {
    "a2d: an h5 file is a link to nowhere": ("a2d", FIRST_H5, "link"),
    "a2d: an h5 file is a link out of the root": ("a2d", FIRST_H5, "outside"),
    "got10k: a sequence is a link out of the root": (
        "got10k",
        "train/GOT-10k_Train_000022",
        "outside",
    ),
    "got10k: a sequence is gone": ("got10k", "train/GOT-10k_Train_000022", "gone"),
    "mevis: pictures of one split are gone": ("mevis", "train/JPEGImages", "gone"),
    "hcstvg: a video is a folder": ("hcstvg", "video/part_1/2_956c5F844eb.mkv", "folder"),
    "lasot: most pictures are official, the first is not": (
        "lasot",
        "cat/cat-2/img/00000001.jpg",
        "suffix",
    ),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_what_a_plan_says_is_what_curation_does(name, corpus, tmp_path):
    """Reasons and numbers of rows, for files and folders that are missing, links, or of the wrong kind."""
    source, place, trouble = TROUBLE[name]
    root = tmp_path / "data" / source
    shutil.copytree(corpus / source, root)
    path = root / place
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    if trouble == "link":
        path.symlink_to(tmp_path / "nowhere")
    elif trouble == "outside":
        path.symlink_to(elsewhere)
    elif trouble == "folder":
        path.mkdir()
    elif trouble == "suffix":
        elsewhere.rename(path.with_suffix(".png"))
    rows = [planned(job)[1] for job in jobs_of(source, root, tmp_path).values()]
    settle_counts(rows)
    promised: Counter[str] = Counter()
    for row in rows:
        promised.update(row["skip"])
    real = curated_reasons(source, root, tmp_path)
    contents = (
        "media_unreadable",
        "annotation_invalid",
        "frame_mismatch",
        "low_quality",
        "no_detection",
    )
    for reason in promised | real:
        if reason not in contents or trouble == "folder":
            assert promised[reason] == real[reason], (reason, promised, real)


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("lasot", "testing_set.txt"),
        ("a2d", "Release/videoset.csv"),
        ("a2d", "text_annotations/a2d_missed_videos.txt"),
    ],
)
def test_a_list_of_splits_that_is_a_refused_link_stops_the_plan(source, place, corpus, tmp_path):
    """Without it, test sequences would be planned as others."""
    root = tmp_path / "data" / source
    shutil.copytree(corpus / source, root)
    (root / place).rename(tmp_path / "list")
    (root / place).symlink_to(tmp_path / "list")
    with pytest.raises(ValueError, match=f"{place} under .* --follow-links"):
        plan_all(source, root, tmp_path)
    (root / place).unlink()
    shutil.copy(tmp_path / "list", (root / place).with_name(Path(place).name.title()))
    with pytest.raises(ValueError, match="rename it to"):
        plan_all(source, root, tmp_path)


def plan_all(source: str, root: Path, tmp_path: Path) -> None:
    for job in jobs_of(source, root, tmp_path).values():
        planned(job)


def test_a_link_that_hides_one_split_is_named_though_others_are_planned(corpus, tmp_path):
    root = tmp_path / "alone" / "deep" / "mevis"
    shutil.copytree(corpus / "mevis", root)
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    [job] = jobs_of("mevis", root, tmp_path).values()
    assert "--follow-links: train is a link" in "\n".join(plan_advice([job], [planned(job)[1]]))


@pytest.mark.parametrize("lost", ["train", "valid_u"])
def test_a_hint_never_moves_one_split_into_another(lost, corpus, tmp_path):
    root = tmp_path / "alone" / "deep" / "mevis"
    shutil.copytree(corpus / "mevis", root)
    shutil.rmtree(root / lost)
    text = hints.explain(load_source("mevis"), DataRoot(root), lost)
    assert "moving" not in text
    assert "renaming" not in text
