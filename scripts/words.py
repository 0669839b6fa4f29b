"""Lists the nearest words of given words, by the cosine of their vectors in a Word2Vec run.

python scripts/words.py --run RUN --near WORD [WORD ...] [--count 10]
"""

import argparse
import sys
from difflib import get_close_matches
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.errors import EXIT_CODE, InputError
from models.layers.text_bag import read_vectors


def nearest(run: str, given: list[str], count: int) -> str:
    """Returns the `count` nearest words of each given word with their cosines, the most similar first.

    Raises InputError for a word that is not in the run.
    """
    words, vectors = read_vectors(run)
    index_of = {word: index for index, word in enumerate(words)}
    unit = torch.nn.functional.normalize(vectors)
    lines = []
    for word in given:
        index = index_of.get(word, index_of.get(word.lower()))
        if index is None:
            close = get_close_matches(word.lower(), words, n=3)
            hint = f" Similar words: {', '.join(close)}." if close else ""
            raise InputError(f"{run}: {word!r} is not among its {len(words):,} words.{hint}")
        cosines = unit @ unit[index]
        cosines[index] = -torch.inf
        top = cosines.topk(min(count, len(words) - 1))
        lines.append(words[index])
        lines += [f"  {cosine:.3f}  {words[i]}" for cosine, i in zip(top.values, top.indices.tolist(), strict=True)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a model=word2vec run")
    parser.add_argument("--near", required=True, nargs="+", metavar="WORD", help="words whose nearest words are listed")
    parser.add_argument("--count", type=int, default=10, help="number of nearest words listed for each word")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error(f"--count {arguments.count}: must be at least 1")
    try:
        print(nearest(arguments.run, arguments.near, arguments.count))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
