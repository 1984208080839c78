"""Several conversations with one model at once: the weights are in memory once, each session has its own cache.

python examples/sessions_on_threads.py [MODEL]
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import edgerun

QUESTIONS = ("Name a colour.", "Name a large river.", "Name an animal that flies.", "What is two plus two?")


def main(model: str = "smollm2") -> None:
    with edgerun.load(model) as loaded, ThreadPoolExecutor(len(QUESTIONS)) as pool:

        def ask(question: str) -> str:
            return loaded.chat([{"role": "user", "content": question}], max_tokens=40, temperature=0).read()

        for question, answer in zip(QUESTIONS, pool.map(ask, QUESTIONS), strict=True):
            print(f"{question}  {answer}")


if __name__ == "__main__":
    main(*sys.argv[1:])
