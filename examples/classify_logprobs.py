"""Classifies texts without generating any: compares how likely the model finds each label as the next words.

python examples/classify_logprobs.py [MODEL]
"""

import sys

import numpy as np

import edgerun

LABELS = ("positive", "negative")
REVIEWS = (
    "A wonderful film, I laughed and cried.",
    "The food was cold and the waiter rude.",
    "I can't wait to read her next book!",
    "It broke after two days, what a waste of money.",
)
PROMPT = """Review: I love this, best day of my life.
Sentiment: positive

Review: Terrible, I want my money back.
Sentiment: negative

Review: {review}
Sentiment:"""


def main(model: str = "smollm2") -> None:
    with edgerun.load(model) as loaded:
        session = loaded.session()
        for review in REVIEWS:
            shares = classify(session, PROMPT.format(review=review))
            label = max(shares, key=lambda name: shares[name])
            print(f"{label} ({shares[label]:.0%})  {review}")


def classify(session: edgerun.Session, prompt: str) -> dict[str, float]:
    """Each label's share of the probability that the labels have together."""
    encode = session.model.tokenizer.encode
    session.reset()
    after_prompt = log_softmax(session.prefill(encode(prompt)))
    start = session.position
    scores = []
    for label in LABELS:
        first, *rest = encode(f" {label}", add_bos=False)
        score = after_prompt[first]
        previous = first
        for token_id in rest:
            score += log_softmax(session.decode(previous))[token_id]
            previous = token_id
        session.rewind(start)  # the prompt stays in the cache for the next label
        scores.append(score)
    shares = np.exp(scores - np.logaddexp.reduce(scores))
    return dict(zip(LABELS, shares.tolist(), strict=True))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


if __name__ == "__main__":
    main(*sys.argv[1:])
