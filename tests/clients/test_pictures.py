"""Pictures, drawn, edited and shown: what they can cost at most, and what they did."""

from typing import Any

import openai
import pytest

from tests.clients.helpers import (
    check_books,
    check_covered,
    outcomes,
    scripted_client,
)
from tokenfence_integrations import Budget, Price, UnmeteredError, guard
from tokenfence_integrations.testing import SimulatedProvider

NEW = {"gpt-image-2.6-flare": Price(input="$5/M", output="$30/M")}
"""Prices of models that a price list may not have yet."""

PIXEL = "data:image/png;base64,iVBORw0KGgo="


class TestPictures:
    """Those of gpt-image are billed by tokens: an answer that does not tell them is not free."""

    @pytest.mark.parametrize("model", [{}, {"model": "gpt-image-1"}])
    def test_without_usage(
        self,
        provider: SimulatedProvider,
        guarded: openai.OpenAI,
        budget: Budget,
        model: dict[str, Any],
    ) -> None:
        provider.behave(omit_usage=True)
        guarded.images.generate(prompt="A cat", **model)
        guarded.images.with_raw_response.generate(prompt="A cat", **model)
        assert provider.billed > 0
        assert outcomes(budget) == ["uncertain", "uncertain"]
        check_covered(budget, provider)

    # What OpenAI's own calculator says of gpt-image-2, and the tables of its guide of the others.
    @pytest.mark.parametrize(
        ("model", "size", "quality", "tokens"),
        [
            ("gpt-image-2", "1024x1024", "high", 7_024),
            ("gpt-image-2", "1536x1024", "high", 5_488),
            ("gpt-image-2-2026-04-21", "1792x1024", "high", 5_063),
            ("gpt-image-2", "3584x2048", "high", 12_329),
            ("gpt-image-2", "auto", "auto", 12_329),
            ("gpt-image-1", "1024x1536", "high", 6_240),
            ("gpt-image-1-mini", "1024x1024", "low", 272),
            ("gpt-image-1.5", "auto", "auto", 6_240),
            ("gpt-image-2.6-flare", "1536x1024", "low", 664),  # as its users have measured
            ("gpt-image-2.6-flare", "1024x1024", "auto", 5_800),
        ],
    )
    def test_is_within_its_bound(
        self, budget: Budget, model: str, size: Any, quality: Any, tokens: int
    ) -> None:
        usage = {
            "input_tokens": 5,
            "input_tokens_details": {"text_tokens": 5, "image_tokens": 0},
            "output_tokens": 2 * tokens,
            "total_tokens": 5 + 2 * tokens,
        }
        answer = {"created": 1, "data": [{"b64_json": ""}] * 2, "usage": usage}
        with scripted_client(answer) as client:
            guard(client, budget=budget, prices=NEW).images.generate(
                model=model, prompt="A cat", size=size, quality=quality, n=2
            )
        [record] = budget.ledger
        assert 0 < record.cost <= record.bound

    def test_the_frames_of_a_gif_are_drawn_on_one_sheet(self, budget: Budget) -> None:
        tokens = 7_024  # of 1024x1024 at high quality, which four frames of 512x512 fill
        usage = {"input_tokens": 5, "output_tokens": tokens, "total_tokens": 5 + tokens}
        answer = {"created": 1, "data": [{"b64_json": ""}], "usage": usage}
        with scripted_client(answer) as client:
            guard(client, budget=budget, prices=NEW).images.generate(
                model="gpt-image-2.6-flare",
                prompt="A cat",
                size="512x512",
                quality="high",
                extra_body={"output_format": "gif", "frame_count": 4},
            )
        [record] = budget.ledger
        assert 0 < record.cost <= record.bound

    def test_the_model_that_writes_an_svg_is_not_metered(
        self, budget: Budget, caplog: pytest.LogCaptureFixture
    ) -> None:
        svg: dict[str, Any] = {"output_format": "svg", "svg": {"model": "gpt-5"}}
        ask: Any = {"model": "gpt-image-1", "prompt": "A cat", "extra_body": svg}
        usage = {"input_tokens": 5, "output_tokens": 1_056, "total_tokens": 1_061}
        with scripted_client({"created": 1, "data": [{}], "usage": usage}) as client:
            with pytest.raises(UnmeteredError, match="an SVG"):
                guard(client, budget=budget, strict=True).images.generate(**ask)
            guard(client, budget=budget).images.generate(**ask)
        assert "the model that writes an SVG cannot be metered" in caplog.text
        assert outcomes(budget) == ["settled"]

    @pytest.mark.parametrize("size", [70, 2_000_000])
    def test_pictures_to_edit_count_by_their_pixels(self, budget: Budget, size: int) -> None:
        """An icon has fewer bytes than tokens, and a photograph many more."""
        tokens = 65 + 4 * 129 + 6_240  # of gpt-image-1, at a high fidelity: the most there are
        usage = {
            "input_tokens": 3 * tokens + 5,
            "input_tokens_details": {"text_tokens": 5, "image_tokens": 3 * tokens},
            "output_tokens": 272,
            "total_tokens": 3 * tokens + 277,
        }
        with scripted_client({"created": 1, "data": [{"b64_json": ""}], "usage": usage}) as client:
            guard(client, budget=budget).images.edit(
                model="gpt-image-1",
                prompt="A cat",
                image=[("a.png", bytes(size)), ("b.png", bytes(size))],
                mask=("mask.png", bytes(size)),
                input_fidelity="high",
                size="1024x1024",
                quality="low",
            )
        [record] = budget.ledger
        # At $5, $10 and $40 a million: text, pictures to edit, and drawn ones.
        assert record.cost == 5 * 5_000 + 3 * tokens * 10_000 + 272 * 40_000
        assert record.cost <= record.bound <= 2 * record.cost

    def test_text_that_is_made_with_them_has_its_own_price(self, budget: Budget) -> None:
        usage = {
            "input_tokens": 5,
            "input_tokens_details": {"text_tokens": 5, "image_tokens": 0},
            "output_tokens": 1_156,
            "output_tokens_details": {"text_tokens": 100, "image_tokens": 1_056},
            "total_tokens": 1_161,
        }
        with scripted_client({"created": 1, "data": [{"b64_json": ""}], "usage": usage}) as client:
            guard(client, budget=budget).images.generate(model="gpt-image-1.5", prompt="A cat")
        # At $5, $10 and $32 a million.
        assert budget.snapshot().spent.usd == 5 * 5_000 + 100 * 10_000 + 1_056 * 32_000

    def test_with_a_price_each(self, budget: Budget) -> None:
        prices = {"dall-e-3": Price(per_image="$0.04")}
        with scripted_client({"created": 1, "data": [{"url": "a"}, {"url": "b"}]}) as client:
            guard(client, budget=budget, prices=prices).images.generate(
                model="dall-e-3", prompt="A cat", n=2
            )
        assert budget.spent == pytest.approx(0.08)
        assert outcomes(budget) == ["settled"]


@pytest.mark.parametrize("url", [PIXEL, "https://example.com/cat.png"])
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "gpt-5"])
def test_pictures_are_within_the_bound(
    provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, url: str, model: str
) -> None:
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    message: Any = {"role": "user", "content": parts}
    guarded.chat.completions.create(model=model, messages=[message])
    check_books(budget, provider)
    [record] = budget.ledger
    assert record.cost <= record.bound


def test_pictures_without_usage_are_not_free_by_any_name(budget: Budget) -> None:
    prices = {"my-deployment": Price(input="$5/M", output="$40/M")}
    with scripted_client({"created": 1, "data": [{"url": "a"}]}) as client:
        guard(client, budget=budget, prices=prices).images.generate(
            model="my-deployment", prompt="A cat"
        )
    assert outcomes(budget) == ["uncertain"]
