"""Lists the words that are nearest to a word by the cosine of their vectors, in a run of Word2Vec.

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
    """For each word its `count` nearest ones, the most similar first, with their cosines."""
    words, vectors = read_vectors(run)
    place = {word: index for index, word in enumerate(words)}
    unit = torch.nn.functional.normalize(vectors)
    lines = []
    for word in given:
        index = place.get(word, place.get(word.lower()))
        if index is None:
            close = get_close_matches(word.lower(), words, n=3)
            hint = f" Near in spelling: {', '.join(close)}." if close else ""
            raise InputError(f"{run}: no word {word!r} among its {len(words):,} words.{hint}")
        cosines = unit @ unit[index]
        cosines[index] = -torch.inf
        top = cosines.topk(min(count, len(words) - 1))
        lines.append(words[index])
        lines += [f"  {cosine:.3f}  {words[i]}" for cosine, i in zip(top.values, top.indices.tolist(), strict=True)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="the folder of a run of model=word2vec")
    parser.add_argument("--near", required=True, nargs="+", metavar="WORD", help="the words")
    parser.add_argument("--count", type=int, default=10, help="words listed for each")
    given = parser.parse_args()
    if given.count < 1:
        parser.error(f"--count {given.count}: must be at least 1")
    try:
        print(nearest(given.run, given.near, given.count))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
