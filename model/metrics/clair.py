"""CLAIR (Chan et al., EMNLP 2023): a language model says how likely two captions describe the same scene.

Talks to any endpoint of the OpenAI chat protocol. Answers are cached on disk, so that a repeated evaluation gives the
same number and costs nothing.
"""

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import Field

from model.metrics.text import MAX_CHARACTERS
from schemas.config import Config, digest

# The metric is defined by this text: other words give other scores (Chan et al. 2023, section 3).
_QUESTION = """\
You are trying to tell if a candidate set of captions is describing the same image as a reference set of captions.
Candidate set:
- {candidate}

Reference set:
- {reference}

On a precise scale from 0 to 100, how likely is it that the candidate set is \
describing the same image as the reference set? (JSON format, with a key "score", \
value between 0 and 100, and a key "reason" with a string value.)
"""


class ClairConfig(Config):
    """Endpoint and sampling; model, temperature and max_tokens as in the released script (model spec, section 5).

    base_url: up to and with /v1. key_variable: environment variable with the key; no key is sent where it is unset.
    retries: repeated requests after a busy or broken connection, and repeated questions after an unreadable answer;
    backoff_s doubles from one to the next. dollars_per_million_*: prices of tokens, for the cost report.
    """

    base_url: str = "https://api.openai.com/v1"
    model: str = "gpt-3.5-turbo"
    temperature: float = Field(default=0.5, ge=0)
    max_tokens: int = Field(default=100, ge=1)
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = Field(default=60.0, gt=0)
    retries: int = Field(default=3, ge=0)
    backoff_s: float = Field(default=1.0, ge=0)
    dollars_per_million_in: float | None = Field(default=None, ge=0)
    dollars_per_million_out: float | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class Judgement:
    """score in [0, 1] (tables print 100 times it); reason as the judge gave it."""

    score: float
    reason: str


@dataclass
class Cost:
    """What a `Clair` has used so far."""

    requests: int = 0
    cached: int = 0
    unreadable: int = 0
    """Captions scored 0 because no answer held a score."""
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float | None = None
    """None without prices in the config."""


class Clair:
    """`clair(caption, reference) -> Judgement`; `clair.cost` reports. Close it, or use it in a `with`.

    cache: folder of one JSON file per question, created on demand; None keeps nothing.
    """

    def __init__(self, config: ClairConfig | None = None, cache: Path | None = None) -> None:
        self.config = config or ClairConfig()
        self.cache = cache
        self.cost = Cost()
        key = os.environ.get(self.config.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=self.config.timeout_s, headers=headers)

    def __enter__(self) -> "Clair":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def __call__(self, caption: str, reference: str) -> Judgement:
        """Judge one caption; both texts are cut at 2000 characters, as in the released script.

        An answer without a score is asked for again, and at last counts 0. Raises RuntimeError where the endpoint
        refuses or stays away: that is no score of the caption.
        """
        body = self._body(caption[:MAX_CHARACTERS], reference[:MAX_CHARACTERS])
        kept = (
            self.cache / f"{digest({'url': self.config.base_url, **body})}.json"
            if self.cache
            else None
        )
        if kept and kept.exists():
            self.cost.cached += 1
            return Judgement(**json.loads(kept.read_text()))
        for _ in range(self.config.retries + 1):
            judgement = read_answer(self._ask(body))
            if judgement is not None:
                if kept:
                    _write(kept, judgement)
                return judgement
        self.cost.unreadable += 1
        return Judgement(0.0, "no readable answer")

    def _body(self, caption: str, reference: str) -> dict:
        return {
            "model": self.config.model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {
                    "role": "user",
                    "content": _QUESTION.format(candidate=caption, reference=reference),
                },
            ],
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
        }

    def _ask(self, body: dict) -> str:
        url = self.config.base_url.rstrip("/") + "/chat/completions"
        problem = ""
        for attempt in range(self.config.retries + 1):
            if attempt:
                time.sleep(self.config.backoff_s * 2 ** (attempt - 1))
            try:
                response = self._client.post(url, json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status_code == 429 or response.status_code >= 500:
                problem = f"HTTP {response.status_code}: {response.text[:200]}"
                continue
            if response.status_code != 200:
                raise RuntimeError(
                    f"CLAIR: {url} refused with HTTP {response.status_code}: {response.text[:200]} "
                    f"(check base_url, model and {self.config.key_variable})"
                )
            return self._counted(response)
        raise RuntimeError(
            f"CLAIR: {url} gave no answer in {self.config.retries + 1} attempts; last: {problem}. "
            "Captions judged so far are kept if a cache is set: run again"
        )

    def _counted(self, response: httpx.Response) -> str:
        try:
            answer = response.json()
            text = answer["choices"][0]["message"]["content"] or ""
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise RuntimeError(
                f"CLAIR: {response.url} does not speak the OpenAI chat protocol: "
                f"{response.text[:200]}"
            ) from error
        usage = answer.get("usage") or {}
        cost, config = self.cost, self.config
        cost.requests += 1
        cost.tokens_in += usage.get("prompt_tokens", 0)
        cost.tokens_out += usage.get("completion_tokens", 0)
        if config.dollars_per_million_in is not None and config.dollars_per_million_out is not None:
            dollars = (
                cost.tokens_in * config.dollars_per_million_in
                + cost.tokens_out * config.dollars_per_million_out
            )
            cost.dollars = dollars / 1e6
        return text


def read_answer(text: str) -> Judgement | None:
    """The judge's answer: its first JSON object with a score in [0, 100], else its first number; None without either.

    A bare number below 1 is taken for a share, as in the reference: models without JSON often answer so.
    """
    for found in re.findall(r"\{[^{}]*\}", text):
        try:
            answer = json.loads(found)
            score = float(answer["score"])
        except (ValueError, KeyError, TypeError):
            continue
        if 0 <= score <= 100:
            return Judgement(score / 100, str(answer.get("reason", "")))
    number = re.search(r"\d*\.?\d+", text)
    score = float(number[0]) if number else -1.0
    if not 0 <= score <= 100:
        return None
    return Judgement(score if score < 1 else score / 100, text.strip())


def _write(path: Path, judgement: Judgement) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"score": judgement.score, "reason": judgement.reason}))
    part.replace(path)
