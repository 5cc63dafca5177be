"""Dead letters: their groups, one letter, and the letters that an action would send."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.jobs import Job
from app.platform.console.letter_actions import Action, act
from app.platform.console.pages import Console, console_of, redirect, time_in
from app.platform.dead_letters import selection
from app.platform.dead_letters.outcomes import find_applied
from app.platform.dead_letters.selection import Found, SelectionRefused
from app.platform.kafka import codec
from app.platform.kafka.codec import header
from app.platform.kafka.dead_letters import DeadLetter, Filter, decoder_of

# The messages of the failure topics that a page reads, and those that it lists besides the groups.
NEWEST, LISTED = 1000, 200
# Letters that arrive between a page and the action must not displace those that the page has shown.
LATER = 1000

BUCKETS, WIDTH, HEIGHT = 24, 120, 24

_FIELDS = ("consumer", "topic", "error", "key", "since", "until", "undecodable", "to", "id")


@dataclass(frozen=True)
class Query:
    """The letters that a page is about. `fields` are those of its URL and of its forms.

    `undecodable` and `to` mean the same as the options of `app dlq`. With `id`, it is one letter of those.
    """

    fields: Mapping[str, str]
    only: Filter
    undecodable: bool
    to: str | None
    id: str | None

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Query":
        """Read the query of a URL or a form. Raises HTTPException 400."""
        fields = {name: text for name in _FIELDS if (text := given.get(name))}
        only = Filter(
            fields.get("consumer"),
            fields.get("topic"),
            fields.get("error"),
            fields.get("key"),
            time_in(fields, "since"),
            time_in(fields, "until"),
        )
        return cls(fields, only, "undecodable" in fields, fields.get("to"), fields.get("id"))

    def url(self, **changes: str | None) -> str:
        """Return the part of a URL after the question mark, with `changes`; None removes a field."""
        fields = {name: text for name, text in {**self.fields, **changes}.items() if text}
        return urlencode(fields)

    async def find(self, console: Console, newest: int) -> Found:
        """Find the letters among the `newest` messages. Raises HTTPException 400."""
        context = console.context
        try:
            if self.to is not None:
                await selection.check_reassignment(context, self.only, self.to)
            found = await selection.find(
                context, console.database, self.only, self.undecodable, self.to, newest
            )
        except SelectionRefused as refused:
            raise HTTPException(400, str(refused)) from refused
        letters = [x for x in found.letters if self.id in (None, x.id)]
        letters.sort(key=lambda letter: letter.record.timestamp, reverse=True)
        return Found(letters, found.applied, found.has_older)


async def show(request: Request) -> Response:
    console, query = console_of(request), Query.of(request.query_params)
    found = await query.find(console, NEWEST)
    times = [letter.last_failed_at for letter in found.letters if letter.last_failed_at]
    return console.render(
        request,
        "letters.html.j2",
        query=query,
        found=found,
        newest=NEWEST,
        listed=found.letters[:LISTED],
        groups=group(found),
        first=min(times, default=None),
        last=max(times, default=None),
        bars=bars(times, times),
        advice=selection.advice_on_orphaned(console.context, found.waiting),
        consumers=[each.name for each in console.context.subscriptions],
    )


# Groups


@dataclass(frozen=True)
class Group:
    """The letters of one consumer with one type of error."""

    consumer: str
    error_type: str
    count: int
    waiting: int
    last: datetime | None
    bars: Sequence[tuple[float, float]]


def group(found: Found) -> list[Group]:
    """Group the letters by consumer and type of error, the largest group first."""
    members: dict[tuple[str, str], list[DeadLetter]] = defaultdict(list)
    for letter in found.letters:
        members[letter.consumer, letter.error_type].append(letter)
    span = [letter.last_failed_at for letter in found.letters if letter.last_failed_at]
    groups = []
    for (consumer, error_type), letters in members.items():
        waiting = sum(letter.identity not in found.applied for letter in letters)
        times = [letter.last_failed_at for letter in letters if letter.last_failed_at]
        last = max(times, default=None)
        groups.append(Group(consumer, error_type, len(letters), waiting, last, bars(times, span)))
    return sorted(groups, key=lambda each: (-each.count, each.consumer, each.error_type))


def bars(times: Sequence[datetime], span: Sequence[datetime]) -> list[tuple[float, float]]:
    """Count `times` in equal parts of the time that `span` covers.

    Returns the left edge and the height of each bar that is not empty, in a box of 120 by 24.
    """
    if not times:
        return []
    start = min(span)
    seconds = (max(span) - start).total_seconds() or 1.0
    counts = [0] * BUCKETS
    for time in times:
        share = (time - start).total_seconds() / seconds
        counts[min(BUCKETS - 1, int(share * BUCKETS))] += 1
    step, top = WIDTH / BUCKETS, max(counts)
    return [(n * step, max(1.0, HEIGHT * each / top)) for n, each in enumerate(counts) if each]


# One letter


async def show_letter(request: Request) -> Response:
    console, context = console_of(request), console_of(request).context
    try:
        letter = await selection.find_one(context, request.path_params["id"])
    except SelectionRefused as refused:
        raise HTTPException(404, str(refused)) from refused
    applied = await find_applied(console.database, context, [letter])
    decoder = decoder_of(letter.consumer, context.registry, context.subscriptions)
    return console.render(
        request,
        "letter.html.j2",
        letter=letter,
        applied=letter.identity in applied,
        traceback=header(letter.record.headers, codec.ERROR_TRACEBACK),
        event_type=header(letter.record.headers, codec.CE_TYPE),
        correlation_id=header(letter.record.headers, codec.CORRELATION_ID),
        body=console.body(letter.record.value),
        decoded=console.decoded(decoder, letter.record, letter.origin),
        advice=selection.advice_on_orphaned(context, [letter]),
        query=Query.of({"consumer": letter.consumer, "topic": letter.origin, "id": letter.id}),
    )


# Actions


async def show_plan(request: Request) -> Response:
    """Show what an action would do: the letters that it would send, and those that it would not."""
    console, query = console_of(request), Query.of(request.query_params)
    action = _action(request.query_params.get("action", ""))
    found = await query.find(console, NEWEST)
    chosen = _choose(console, query, action, found)
    return console.render(
        request,
        "letters_plan.html.j2",
        action=action,
        query=query,
        found=found,
        newest=NEWEST,
        letters=chosen.letters,
        reasons=chosen.reasons,
        others=_others(console, query, found),
        ids=" ".join(letter.id for letter in chosen.letters),
    )


async def start(request: Request) -> Response:
    """Begin the action of a plan, on the letters that its page has shown, and no others."""
    console = console_of(request)
    form = await console.form(request)
    query, action = Query.of(form), _action(form.get("action", ""))
    shown = form.get("ids", "").split()
    found = await query.find(console, NEWEST + LATER)
    chosen = _choose(console, query, action, found)
    letters = _only(chosen.letters, set(shown))
    title = f"{action.value} {len(shown)} dead letters ({query.url(id=None) or 'all'})"

    async def work(job: Job) -> None:
        await act(console, job, action, letters, query.to, missing=len(shown) - len(letters))

    job = console.jobs.start(title, request.state.actor, work)
    return redirect(request, f"jobs/{job.id}")


def _action(name: str) -> Action:
    try:
        return Action(name)
    except ValueError:
        raise HTTPException(400, f"there is no action {name!r}") from None


def _choose(console: Console, query: Query, action: Action, found: Found) -> selection.Choice:
    if action is Action.DISCARD:
        return selection.Choice(list(found.letters), [])
    return selection.choose(console.context, found, query.to, query.undecodable)


def _only(letters: Sequence[DeadLetter], ids: Collection[str]) -> list[DeadLetter]:
    return [letter for letter in letters if letter.id in ids]


def _others(console: Console, query: Query, found: Found) -> list[str]:
    """Return the consumers that could take the letters of one that no longer reads their topics."""
    if query.only.consumer is None:
        return []
    orphaned = [x for x in found.waiting if selection.is_orphaned(console.context, x)]
    return sorted({name for x in orphaned for name in selection.readers(console.context, x.origin)})


ROUTES = [
    Route("/letters", show),
    Route("/letters/plan", show_plan),
    Route("/letters/start", start, methods=["POST"]),
    Route("/letters/{id}", show_letter),
]
