"""Prints an answer as it is written.

python examples/streaming_answer.py [MODEL] [QUESTION]
"""

import sys

import edgerun


def main(model: str = "smollm2", question: str = "Why is the sky blue?") -> None:
    with edgerun.load(model) as loaded:
        answer = loaded.chat([{"role": "user", "content": question}], max_tokens=200, seed=1)
        for piece in answer:
            print(piece.text, end="", flush=True)
        print(f"\n\n{answer.finish_reason}, {answer.timings.decode_tokens_per_s:.0f} tokens/s")


if __name__ == "__main__":
    main(*sys.argv[1:])
