"""Ask: a referent and its caption become question-answer pairs.

A pair of family "region" asks about a `<region>` and is answered with the caption, unchanged (paper, Appendix A);
one of family "segment" asks for the mask of what the caption describes. Stage 1 trains on these pairs: it counts
them, takes their answers, and draws a template of the same pool anew in every epoch (`model.data.questions`).
"""

from schemas.config import Config
from schemas.questions import TEMPLATES, Family, draw
from schemas.records import QA


class QuestionConfig(Config):
    """Which pairs are written.

    families: forms of question to ask, in this order. per_referent: questions of each family per referent.
    seed: another seed draws other templates. templates: the hash of the pool of this version, so that another pool
    is another config; it cannot be set.
    """

    families: tuple[Family, ...] = ("region",)
    per_referent: int = 1
    seed: int = 0
    templates: str = TEMPLATES.hash


def ask(referent_id: str, caption: str, config: QuestionConfig) -> list[QA]:
    """The question-answer pairs of one referent, `len(families) * per_referent` of them, ids `<referent_id>-q<n>`.

    Templates are drawn by a hash of seed and referent, so they do not depend on what else is curated; none comes
    twice for a referent before its family's pool is used up. Raises ValueError for an empty caption.
    """
    if not caption.strip():
        raise ValueError(f"{referent_id}: an empty caption cannot be asked about")
    pairs: list[QA] = []
    for family in config.families:
        for ordinal in range(config.per_referent):
            key = f"{config.seed}/{referent_id}/{family}"
            if family == "region":
                number = draw(key, ordinal, TEMPLATES.region)
                question, answer = TEMPLATES.region[number], caption
            else:
                number = draw(key, ordinal, TEMPLATES.segment)
                question = TEMPLATES.request(number, caption)
                answer = TEMPLATES.reply[draw(f"{key}/reply", ordinal, TEMPLATES.reply)]
            pairs.append(QA(f"{referent_id}-q{len(pairs)}", family, number, question, answer))
    return pairs
