"""The cards of the shipped checkpoints, written anew from them.

python -m benchmarks.cards

A card is the docstring of the model, where it is valid, and the record of its training: after a
change of any of them, ``checkpoints/<name>.md`` is written again.
"""

from orrery import load, names
from orrery.model_card import model_card
from orrery.pretrained import find


def main() -> None:
    for name in names():
        card = model_card(name, load(name))
        file = find(name).with_suffix(".md")
        if file.read_text() != card:
            file.write_text(card)
            print(f"{file.name} is new")


if __name__ == "__main__":
    main()
