"""Which samples are good enough: a source's `sample.*` rules, asked after the track and after the masks."""

from pipeline.agree import Agreement, TrackQuality, kept_share
from pipeline.sources.base import SampleRules
from schemas.records import Annotation, Quarantined, Reason, Segment, is_fallback


def check_track(
    agreement: Agreement, annotation: Annotation, quality: TrackQuality, least: SampleRules
) -> None:
    """Quarantined(low_quality) for a track below the source's rules for samples."""
    share = kept_share(agreement, annotation)
    if least.min_kept_share is not None and share < least.min_kept_share:
        frames = f"{int(agreement.kept.sum())} of {len(agreement.kept)} frames are kept"
        among = f"{share:.1%} of those in which the target may be"
        message = f"{frames}, {among}; sample.min_kept_share is {least.min_kept_share:g}"
        raise Quarantined(Reason.LOW_QUALITY, message, stage="agree")
    iou = quality.mean_iou
    if least.min_mean_iou is not None and iou is not None and iou < least.min_mean_iou:
        message = f"mean IoU {iou:.3f} on {quality.n_compared} frames"
        message += f"; sample.min_mean_iou is {least.min_mean_iou:g}"
        raise Quarantined(Reason.LOW_QUALITY, message, stage="agree")


def check_masks(segments: list[Segment | None], least: SampleRules) -> None:
    """Quarantined(low_quality) for masks below the source's rules for samples."""
    masks = [segment for segment in segments if segment is not None]
    fallbacks = sum(is_fallback(segment) for segment in masks)
    most = least.max_fallback_share
    if most is not None and fallbacks > most * len(masks):
        message = f"{fallbacks} of {len(masks)} masks are fallbacks"
        message += f"; sample.max_fallback_share is {most:g}"
        raise Quarantined(Reason.LOW_QUALITY, message, stage="segment")
