"""A budget inside an agent made by LangChain's `create_agent`."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, get_args
from uuid import uuid4
from weakref import ref

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    hook_config,
)
from langchain.agents.middleware.types import PrivateStateAttr
from langchain.tools import ToolRuntime
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, RemoveMessage
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import StructuredTool
from langgraph.channels.untracked_value import UntrackedValue
from langgraph.config import get_config
from langgraph.types import Command

from tokenfence_integrations.engine.budget import Budget, Dollars, as_budget
from tokenfence_integrations.engine.calls.policy import OnUnknown, Policy
from tokenfence_integrations.engine.scope import budget_in_scope
from tokenfence_integrations.engine.waiting import current_owner
from tokenfence_integrations.errors import BudgetExceeded, NoBudgetError
from tokenfence_integrations.langchain.agents.agent_runs import AgentRun, Allowance, parse_allowance
from tokenfence_integrations.langchain.agents.questions import ask, question_of, refusal_of
from tokenfence_integrations.langchain.agents.requests import GuardedRequest
from tokenfence_integrations.langchain.agents.statuses import status_line, with_line
from tokenfence_integrations.langchain.agents.tool_calls import awaiting_tools
from tokenfence_integrations.langchain.agents.wrap_up import WrapUp
from tokenfence_integrations.langchain.chat_models import BudgetedChatModel
from tokenfence_integrations.langchain.guarding import Guarding, ModelFallback
from tokenfence_integrations.langchain.replies import refusal_message
from tokenfence_integrations.models.flows import Flow, arun, run
from tokenfence_integrations.money import to_decimal
from tokenfence_integrations.pricing.book import Prices
from tokenfence_integrations.stores.base import Limits, Read

__all__ = ["BudgetMiddleware", "ExitBehavior"]

ExitBehavior: TypeAlias = Literal["end", "error", "wrap_up", "ask"]

RUN_KEY, SPENT_KEY = "budget_run", "budget_spent"

UNSAVED = 1_000
"""Of how many threads it is remembered what their state could not be told."""


def _merged(kept: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {**(kept or {}), **new}


class BudgetState(AgentState[Any]):
    """What the middleware keeps in the agent's state, by the name of the middleware."""

    budget_spent: NotRequired[Annotated[dict[str, Any], PrivateStateAttr, _merged]]
    budget_run: NotRequired[
        Annotated[dict[str, Any], UntrackedValue(dict, guard=False), PrivateStateAttr]
    ]


class BudgetMiddleware(AgentMiddleware[Any, Any, Any]):
    """Keeps the model calls of an agent within a budget, and each run and thread within a limit.

    Put it last in ``middleware``, so that it sees every attempt that the others make. Each call is
    reserved before it is sent and settled at its real cost, as with a guarded model (`guard`); if
    there is no room for a call, the run ends as ``exit_behavior`` says.

    A model that middleware placed after it swaps in counts as well.

    It only sees the agent's own calls. Those of sub-agents, summaries and tool selection count if
    their model is guarded: ``create_agent(guard(model, budget=budget), ...)``.

    Args:
        budget: Dollars (``"$5.00"``, ``5``) or a `Budget`; None: the one that the agent's model is
            guarded with, or else the one of the surrounding ``budget.scope()``.
        run_limit: The most that one run (one ``invoke``, up to its end) may cost: dollars, another
            limit in words (``"10 calls"``), or several quantities,
            ``{"usd": "$1", "calls": 10, "tokens": 50_000}``. None: no limit.
        thread_limit: The same for all runs of one thread, as long as its checkpointer keeps it.
        fallback: A cheaper model that takes over from ``threshold`` on, or when the wanted one no
            longer fits: a name, a chat model (of another provider, too), a chain, or stages.
        exit_behavior: What happens when a call does not fit:

            - ``"end"``: the run ends with a message that says so.
            - ``"error"``: `BudgetExceeded` is raised; nothing retries it.
            - ``"wrap_up"``: the last fallback, or else the model, answers once more, without tools,
              to sum up what is done and left. What that costs is held back from the start.
            - ``"ask"``: the graph is interrupted with the numbers, and goes on after
              ``Command(resume={"top_up": "$1"})``, or ends after ``{"stop": True}``. It needs a
              checkpointer.
        tell_model: Whether the model reads what is left in a line of its system message, and has a
            tool, ``budget_status``, to ask. The line changes with every call, so a provider's
            prompt cache does not reach beyond it.
        wrap_up_tokens: The most output tokens of the last answer, 1 or more.
        threshold: Share of the budget, 0.0 to 1.0, from which the fallback takes over; default: the
            budget's own, 0.8.
        wait: Seconds that a call waits for calls of others in flight; 0 never waits.
        min_output_tokens: The smallest answer cap that is worth paying for.
        on_unknown: ``"charge"`` a call of unknown outcome what it may have cost, or ``"release"``.
        prices: Prices of your own by model name.
        exact_input: Whether the server counts text as OpenAI does; None: if it is OpenAI's or
            Azure's.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> agent = create_agent(  # doctest: +SKIP
        ...     "openai:gpt-4o",
        ...     tools,
        ...     middleware=[BudgetMiddleware("$5.00", run_limit="$0.50", exit_behavior="wrap_up")],
        ... )
    """

    state_schema = BudgetState

    def __init__(
        self,
        budget: Budget | Dollars | None = None,
        *,
        run_limit: Allowance = None,
        thread_limit: Allowance = None,
        fallback: ModelFallback = None,
        exit_behavior: ExitBehavior = "end",
        tell_model: bool = False,
        wrap_up_tokens: int = 500,
        threshold: float | None = None,
        wait: float = 60.0,
        min_output_tokens: int = 16,
        on_unknown: OnUnknown = "charge",
        prices: Prices = None,
        exact_input: bool | None = None,
    ) -> None:
        super().__init__()
        if exit_behavior not in get_args(ExitBehavior):
            raise ValueError(
                f"exit_behavior must be one of {', '.join(map(repr, get_args(ExitBehavior)))}, "
                f"got {exit_behavior!r}"
            )
        if type(wrap_up_tokens) is not int or wrap_up_tokens < 1:
            raise ValueError(f"wrap_up_tokens must be 1 or more tokens, got {wrap_up_tokens!r}")
        given = 0.8 if threshold is None else threshold
        held = None if budget is None else as_budget(budget, given)
        if threshold is None and held is not None:
            given = held.threshold
        policy = Policy("raise", (), wait, min_output_tokens, on_unknown)
        self.budget = held
        self.run_limit = parse_allowance(run_limit)
        self.thread_limit = parse_allowance(thread_limit)
        self.exit_behavior = exit_behavior
        self.tell_model = tell_model
        self._wrap_up = WrapUp(wrap_up_tokens)
        self.tools = [self._status_tool()] if tell_model else []
        self._guarding = Guarding(held, policy, fallback, given, prices, exact_input)
        self._models: dict[int, tuple[ref[BaseChatModel], Any]] = {}
        self._unsaved: dict[tuple[str, str], AgentRun] = {}
        if exit_behavior == "wrap_up":
            own: Any = type(self)
            self.__class__ = awaiting_tools(own)

    def __repr__(self) -> str:
        held = "the budget in scope" if self.budget is None else f"budget {self.budget.name!r}"
        return f"<{type(self).__name__} of {held}, exit_behavior={self.exit_behavior!r}>"

    # What LangChain calls

    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Begin a run."""
        begun = self._recorded(state, new_run=True)
        return self._update(state, begun)

    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any]:
        """Begin a run."""
        return self.before_agent(state, runtime)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ExtendedModelResponse[Any]:
        """Make a model call within the budget."""
        return run(self._model_call("admit", request, handler))

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ExtendedModelResponse[Any]:
        """Make a model call within the budget."""
        return await arun(self._model_call("aadmit", request, handler))

    @hook_config(can_jump_to=["end", "model"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Leave the agent's loop, or repeat the model call, if that was decided."""
        # A jump that is noted in the model's own step is forgotten one step later, and there may be
        # other middleware in between.
        current = self._current(state)
        if current is None:
            return None
        self._remember(state, current)
        if current.jump is None:
            return None
        unsaid = [RemoveMessage(m.id) for m in state["messages"] if m.id and m.id == current.unsaid]
        return {"jump_to": current.jump, **({"messages": unsaid} if unsaid else {})}

    @hook_config(can_jump_to=["end", "model"])
    async def aafter_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Leave the agent's loop, or repeat the model call, if that was decided."""
        return self.after_model(state, runtime)

    def after_agent(self, state: Any, runtime: Any) -> None:
        """Give back what was held for a last answer."""
        current = self._current(state)
        if current is not None:
            current.drop_hold()

    async def aafter_agent(self, state: Any, runtime: Any) -> None:
        """Give back what was held for a last answer."""
        self.after_agent(state, runtime)

    # One model call

    def _model_call(
        self, admit: str, request: ModelRequest[Any], handler: Callable[[Any], Any]
    ) -> Flow[ExtendedModelResponse[Any]]:
        current = self._current(request.state) or self._recorded(request.state)
        current.jump, current.maker = None, current_owner()
        self._remember(request.state, current)
        request = GuardedRequest.of(request, partial(self._model, current=current))
        budget = current.budget
        if budget is None:
            raise AssertionError("a guarded model has a budget")
        if self.tell_model:
            line = yield partial(_status, admit, current)
            request = request.override(system_message=with_line(request.system_message, line))
        try:
            with budget.scope():
                response = yield from self._answer(admit, request, handler, current)
        except BaseException:
            current.drop_hold()
            self._remember(request.state, current)
            raise
        update: dict[str, Any] = self._update(request.state, current)
        if current.jump is not None:
            update["jump_to"] = current.jump
        return ExtendedModelResponse(response, Command(update=update))

    def _answer(
        self,
        admit: str,
        request: ModelRequest[Any],
        handler: Callable[[Any], Any],
        current: AgentRun,
    ) -> Flow[ModelResponse[Any]]:
        """The model's answer, or what ``exit_behavior`` puts in its place."""
        response: ModelResponse[Any]
        if current.question is not None:
            return self._asked(current.question, current)
        try:
            if self.exit_behavior == "wrap_up":
                yield from self._wrap_up.hold_back(admit, request, current)
            response = yield partial(handler, request)
        except BudgetExceeded as refusal:
            if self.exit_behavior == "error":
                raise
            refused = refusal
        else:
            return response
        if current.hold is not None:
            last = yield from self._wrap_up.last_answer(admit, request, handler, current)
            if last is not None:
                return last
        if self.exit_behavior == "ask":
            # In a step of its own, which is what is repeated when the answer comes: were it this
            # one, the call would be tried again first, and where there is room for it by then,
            # made whatever the answer is.
            current.question = question_of(refused)
            return _nothing(current)
        current.jump = "end"
        return ModelResponse([refusal_message(refused)])

    def _asked(self, question: dict[str, Any], current: AgentRun) -> ModelResponse[Any]:
        """What follows from a person's answer; nothing is sent."""
        goes_on = ask(question, partial(_raise_limit, question["limit_of"], current))
        current.question = None
        # Going on is a step of its own: were the call made here, and failed, the answer would be
        # found again, and the limit raised again.
        if goes_on:
            return _nothing(current)
        current.jump = "end"
        return ModelResponse([refusal_message(refusal_of(question))])

    # The model

    def _model(self, model: Any, current: AgentRun) -> Any:
        """A model whose calls count against the budget and the run."""
        if isinstance(model, RunnableBinding):
            bound = self._model(model.bound, current)
            return model if bound is model.bound else model.model_copy(update={"bound": bound})
        if not isinstance(model, BaseChatModel):
            raise TypeError(
                f"BudgetMiddleware cannot guard a {type(model).__qualname__}: give the agent a "
                f"chat model, or a binding around one"
            )
        if not isinstance(model, BudgetedChatModel):
            model = self._guarded(model)
        elif current.run in model.tokenfence_terms.sublimits:
            return model
        elif self._guarding.fallback is not None:
            raise ValueError(
                "the agent's model is guarded already, and its fallbacks are those that it was "
                "guarded with: give them to guard(), not to BudgetMiddleware"
            )
        terms = model.tokenfence_terms
        budget = self._budget(terms.budget)
        current.budget = budget
        terms = terms.but(
            budget=budget,
            policy=replace(terms.policy, on_limit="raise"),
            sublimits=(*terms.sublimits, current.run, current.thread),
        )
        return model.model_copy(update={"tokenfence_terms": terms})

    def _guarded(self, model: BaseChatModel) -> Any:
        """The guarded form of a model; made once."""
        known = self._models.get(id(model))
        if known is not None and known[0]() is model:
            return known[1]
        number, models = id(model), self._models

        def forget(_: object) -> None:
            models.pop(number, None)

        guarded = self._guarding.chat_model(model)
        models[number] = ref(model, forget), guarded
        return guarded

    def _budget(self, own: Budget | None) -> Budget:
        """What a call counts against: of the middleware's budget and the model's own, the deeper.

        Raises:
            ValueError: Neither is part of the other.
            NoBudgetError: There is none at all.
        """
        if own is None:
            try:
                own = budget_in_scope()
            except NoBudgetError:
                if self.budget is None:
                    raise
                return self.budget
        given = self.budget
        if given is None or given is own or _is_below(own, given):
            return own
        if _is_below(given, own):
            return given
        raise ValueError(
            f"BudgetMiddleware has the budget {given.name!r}, and the agent's model counts against "
            f"{own.name!r}; neither is part of the other, so a call cannot be charged to both. "
            f"Give the middleware budget=None to use the model's, or one of the same tree"
        )

    # What is kept in the state

    def _current(self, state: Any) -> AgentRun | None:
        """The run under way; None if it was resumed and no model was called since."""
        current = (state.get(RUN_KEY) or {}).get(self.name)
        return current if isinstance(current, AgentRun) else None

    def _kept(self, state: Any) -> dict[str, Any]:
        """What the state keeps of the run and of its thread."""
        return dict((state.get(SPENT_KEY) or {}).get(self.name) or {})

    def _recorded(self, state: Any, *, new_run: bool = False) -> AgentRun:
        """A run as the state records it, and what the state could not be told."""
        record = self._kept(state)
        lost = self._unsaved.get(_place())
        if lost is not None:
            lost.seen(record)
        if new_run:
            record = {"thread": record.get("thread")}
        current = AgentRun((self.run_limit, self.thread_limit), record)
        current.budget = self.budget
        if lost is not None:
            current.thread.charge(*lost.thread.unsaved)
            if not new_run:
                current.run.charge(*lost.run.unsaved)
        return current

    def _remember(self, state: Any, current: AgentRun) -> None:
        """Keep what the state does not: a step that fails, here or further out, writes nothing."""
        current.seen(self._kept(state))
        place = _place()
        if not place[0]:
            return
        self._unsaved.pop(place, None)
        if current.unsaved:
            self._unsaved[place] = current
            while len(self._unsaved) > UNSAVED:
                self._unsaved.pop(next(iter(self._unsaved)), None)

    def _update(self, state: Any, current: AgentRun) -> dict[str, Any]:
        """What to write to the state."""
        self._remember(state, current)
        return {
            SPENT_KEY: {self.name: current.record()},
            RUN_KEY: {**(state.get(RUN_KEY) or {}), self.name: current},
        }

    # What the model may ask

    def _status_tool(self) -> StructuredTool:
        def budget_status(runtime: ToolRuntime) -> str:
            current = self._current(runtime.state) or self._recorded(runtime.state)
            line: str = _status("admit", current)
            return line

        async def abudget_status(runtime: ToolRuntime) -> str:
            current = self._current(runtime.state) or self._recorded(runtime.state)
            line: str = await _status("aadmit", current)
            return line

        return StructuredTool.from_function(
            budget_status,
            abudget_status,
            name="budget_status",
            description="Tells what is left of the budget for this task. Costs nothing.",
        )


def _nothing(current: AgentRun) -> ModelResponse[Any]:
    """No answer: the model's step is repeated.

    It is an empty message, removed when the step is over: other middleware reads the last one, and
    would find tool calls there that were made already.
    """
    current.jump = "model"
    current.unsaid = f"unsaid-{uuid4()}"
    return ModelResponse([AIMessage("", id=current.unsaid)])


def _raise_limit(name: str, current: AgentRun, added: Limits) -> None:
    """Raise the limit of this name, which a call was refused by."""
    budget = current.budget
    while budget is not None and budget.name != name:
        budget = budget.parent
    if budget is not None:
        by = {quantity: amount or 0 for quantity, amount in zip(added._fields, added, strict=True)}
        budget.top_up(to_decimal(by.pop("usd")), **by)
    elif name == current.run.name:
        current.run.raise_by(added)
    elif name == current.thread.name:
        current.thread.raise_by(added)
    else:
        raise ValueError(f"nothing here can raise the limit of {name!r}")


def _is_below(budget: Budget, other: Budget) -> bool:
    return budget._tree is other._tree and other.name in budget.path


def _place() -> tuple[str, str]:
    """The thread of the run under way, and where in a graph of graphs its agent is."""
    try:
        configured = get_config().get("configurable", {})
    except RuntimeError:  # called outside of any graph
        return "", ""
    namespace = str(configured.get("checkpoint_ns") or "")
    return str(configured.get("thread_id") or ""), namespace.rpartition("|")[0]


def _status(admit: str, current: AgentRun) -> Any:
    """What is left; to be awaited on an async way."""

    def told(states: Any) -> str:
        budget = current.budget
        names = [] if budget is None else [f"budget {name!r}" for name in budget.path]
        own = [(account.name, account.state) for account in (current.run, current.thread)]
        line = status_line([*own, *zip(names, states, strict=True)])
        return line if names else f"{line} The budget is not known before the next model call."

    async def later(store: Any, path: Any) -> str:
        return told((await store.aexecute(Read(path))).states)

    async def at_once() -> str:
        return told(())

    budget = current.budget
    if budget is None:
        return told(()) if admit == "admit" else at_once()
    store = budget._tree.store
    if admit == "aadmit":
        return later(store, budget.charged_path())
    return told(store.execute(Read(budget.charged_path())).states)
