"""What is on a page of the gallery: the cards of the manifests' rows, filtered and cut into pages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.landing.manifest import OUTCOMES, Manifest, ManifestRow

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.landing.files import LandedFile

PAGE_SIZES = (30, 60, 120)


@dataclass(frozen=True)
class Wanted:
    """
    What to show.

    :param outcome: only rows with this outcome; empty for all
    :param model: only rows of this model; empty for all
    :param text: only rows that hold every word of it, in whatever case: in the key, the request id, the model,
        the arguments, the metadata or the reason
    :param page: which page, from 1
    :param size: cards on a page
    """

    outcome: str = ""
    model: str = ""
    text: str = ""
    page: int = 1
    size: int = PAGE_SIZES[1]

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Wanted:
        """Read a query string; what is not understood counts as not given."""
        size = _number(query.get("size"), cls.size)
        return cls(
            outcome=query["outcome"] if query.get("outcome") in OUTCOMES else "",
            model=query.get("model", "")[:200],
            text=query.get("text", "").strip()[:200],
            page=max(1, _number(query.get("page"), 1)),
            size=size if size in PAGE_SIZES else cls.size,
        )

    def as_query(self, **changes: object) -> dict[str, object]:
        """Return it as a query string's fields, with changes; defaults are left out."""
        changed = replace(self, **changes)  # type: ignore[arg-type]
        default = Wanted()
        return {
            name: getattr(changed, name)
            for name in self.__dataclass_fields__
            if getattr(changed, name) != getattr(default, name)
        }


@dataclass(frozen=True)
class Card:
    """
    One file of one row, or a row without files.

    :param row_number: the row's place in its manifest, from 0; so is ``file_number`` in the row
    """

    task_id: str
    map_index: int
    row_number: int
    row: ManifestRow
    file_number: int | None = None

    @property
    def file(self) -> LandedFile | None:
        """The file, if there is one."""
        return None if self.file_number is None else self.row.files[self.file_number]

    @property
    def place(self) -> str:
        """Which file of its row it is, such as ``1/2``; empty if it is the only one."""
        count = len(self.row.files)
        return "" if self.file_number is None or count < 2 else f"{self.file_number + 1}/{count}"

    @property
    def prompt(self) -> str | None:
        """The prompt, if the manifest has the arguments."""
        prompt = (self.row.arguments or {}).get("prompt")
        return prompt if isinstance(prompt, str) else None

    @cached_property
    def haystack(self) -> str:
        """All text in which a search looks."""
        row = self.row
        parts = [row.key, row.request_id or "", row.model]
        parts += _texts([row.arguments, row.metadata])
        parts += [row.error.kind, row.error.message] if row.error else []
        return "\n".join(parts).casefold()


@dataclass(frozen=True)
class Account:
    """One manifest, and the task that wrote it."""

    task_id: str
    map_index: int
    manifest: Manifest

    @cached_property
    def cards(self) -> tuple[Card, ...]:
        """A card for each file, and one for each row without any."""
        cards = []
        for number, row in enumerate(self.manifest.rows):
            for file in range(len(row.files)) if row.files else (None,):
                cards.append(Card(self.task_id, self.map_index, number, row, file))
        return tuple(cards)


@dataclass(frozen=True)
class Page:
    """
    What is shown.

    :param cards: those on the page
    :param number: which page it is, from 1; a page behind the last is the last
    :param pages: how many there are, at least 1
    :param found: cards on all pages
    :param files: files in all manifests
    :param outcomes: how many rows have each outcome, of all rows, in the order of ``OUTCOMES``
    :param models: all models, by name
    """

    cards: Sequence[Card]
    wanted: Wanted
    number: int
    pages: int
    found: int
    files: int
    rows: int
    outcomes: Mapping[str, int] = field(default_factory=dict)
    models: Sequence[str] = ()

    @property
    def first(self) -> int:
        """The number of the first card on the page, from 1; 0 if there is none."""
        return (self.number - 1) * self.wanted.size + 1 if self.cards else 0


def page_of(accounts: Iterable[Account], wanted: Wanted) -> Page:
    """Return one page of what is wanted, in the order of the manifests."""
    accounts = list(accounts)
    rows = [row for account in accounts for row in account.manifest.rows]
    found = [card for account in accounts for card in account.cards if _fits(card, wanted)]
    pages = max(1, -(-len(found) // wanted.size))
    number = min(wanted.page, pages)
    counted = Counter(row.outcome for row in rows)
    return Page(
        cards=found[(number - 1) * wanted.size : number * wanted.size],
        wanted=replace(wanted, page=number),
        number=number,
        pages=pages,
        found=len(found),
        files=sum(len(row.files) for row in rows),
        rows=len(rows),
        outcomes={outcome: counted[outcome] for outcome in OUTCOMES if counted[outcome]},
        models=sorted({row.model for row in rows}),
    )


def _fits(card: Card, wanted: Wanted) -> bool:
    return (
        (not wanted.outcome or card.row.outcome == wanted.outcome)
        and (not wanted.model or card.row.model == wanted.model)
        and (not wanted.text or all(word in card.haystack for word in wanted.text.casefold().split()))
    )


def _texts(value: Any) -> Iterator[str]:
    """Yield the keys and the values in a JSON value as they are read: in JSON, a quotation mark is two characters."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, Mapping):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            left += item
        elif item is not None:
            yield item if isinstance(item, str) else json.dumps(item)


def _number(text: str | None, otherwise: int) -> int:
    plain = text is not None and text.isascii() and text.isdigit() and len(text) <= 9
    return int(text or "") if plain else otherwise
