"""The CLAIR client against a local server that can be slow, busy, wordy or wrong."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from model.metrics import Clair, ClairConfig
from model.metrics.clair import read_answer


class Judge(BaseHTTPRequestHandler):
    """Answers with what the test queued: (status, text)."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        status, text = self.server.queue.pop(0)
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        reply = (
            json.dumps({"choices": [{"message": {"content": text}}], "usage": usage})
            if status == 200
            else text
        )
        self.send_response(status)
        self.end_headers()
        self.wfile.write(reply.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Judge)
    server.queue, server.seen = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def config(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "abc")
    return ClairConfig(
        base_url=f"http://127.0.0.1:{server.server_port}/v1",
        key_variable="JUDGE_KEY",
        backoff_s=0.001,
        retries=2,
        dollars_per_million_in=1.0,
        dollars_per_million_out=5.0,
    )


def test_asks_scores_and_counts_the_cost(server, config):
    server.queue = [(200, 'Sure: {"score": 85, "reason": "both show a dog"}')]
    with Clair(config) as clair:
        judgement = clair("a dog runs", "a running dog")
    assert (judgement.score, judgement.reason) == (0.85, "both show a dog")
    path, key, body = server.seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer abc")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-3.5-turbo", 0.5, 100)
    question = body["messages"][1]["content"]
    assert question.index("- a dog runs") < question.index("- a running dog")
    assert (clair.cost.requests, clair.cost.tokens_in, clair.cost.tokens_out) == (1, 100, 10)
    assert clair.cost.dollars == pytest.approx(150e-6)


def test_a_second_run_is_free_and_identical(server, config, tmp_path):
    server.queue = [(200, '{"score": 40, "reason": "x"}'), (200, '{"score": 60, "reason": "y"}')]
    with Clair(config, tmp_path / "cache") as clair:
        first = clair("a", "b")
    with Clair(config, tmp_path / "cache") as clair:
        assert clair("a", "b") == first
        assert (clair.cost.requests, clair.cost.cached) == (0, 1)
        assert clair("a", "c").score == 0.6  # another question is not answered from the cache
    assert len(server.seen) == 2


def test_a_busy_endpoint_is_asked_again(server, config):
    server.queue = [(429, "slow down"), (503, "busy"), (200, '{"score": 100}')]
    with Clair(config) as clair:
        assert clair("a", "b").score == 1


def test_an_endpoint_that_stays_away_is_an_error_not_a_score(server, config):
    server.queue = [(500, "broken")] * 3
    with (
        Clair(config) as clair,
        pytest.raises(RuntimeError, match=r"3 attempts; last: HTTP 500: broken"),
    ):
        clair("a", "b")
    gone = config.model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    with Clair(gone) as clair, pytest.raises(RuntimeError, match="ConnectError"):
        clair("a", "b")


def test_a_refusal_is_not_repeated(server, config):
    server.queue = [(401, "bad key")]
    with (
        Clair(config) as clair,
        pytest.raises(RuntimeError, match=r"HTTP 401: bad key .*JUDGE_KEY"),
    ):
        clair("a", "b")
    assert len(server.seen) == 1


def test_an_unreadable_answer_is_asked_again_then_counts_zero(server, config, tmp_path):
    server.queue = [(200, "I cannot say"), (200, '{"score": 70}')]
    with Clair(config, tmp_path) as clair:
        assert clair("a", "b").score == 0.7
        server.queue = [(200, "no idea")] * 3
        assert clair("a", "c").score == 0
        assert clair.cost.unreadable == 1
    assert len(list(tmp_path.iterdir())) == 1  # a failure is not kept


def test_long_texts_are_cut_as_released(server, config):
    server.queue = [(200, '{"score": 1}')]
    with Clair(config) as clair:
        clair("x" * 5000, "y" * 5000)
    question = server.seen[0][2]["messages"][1]["content"]
    assert question.count("x" * 2000) == question.count("y" * 2000) == 1
    assert "x" * 2001 not in question


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 85.5, "reason": "ok"}', 0.855),
        ('{"thought": 1} {"score": "20"}', 0.2),
        ("Score: 64, they differ", 0.64),
        ("0.9", 0.9),
        ('{"score": 85, "reason": "unfinis', 0.85),
        ("year 2016", None),
        ("", None),
    ],
)
def test_reading_answers(text, score):
    judgement = read_answer(text)
    assert (judgement.score if judgement else None) == score
