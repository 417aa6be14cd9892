"""Ordinary Django: forms, views and redirects, which work without JavaScript too. Only the list is live."""

from __future__ import annotations

from django.db.models import F
from django.forms import ModelForm
from django.http import Http404, HttpRequest, HttpResponse
from django.http.request import split_domain_port
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from djmease.templatetags.djmease import server_url
from questions.models import Question, listed, publish_list


class QuestionForm(ModelForm):
    class Meta:
        model = Question
        fields = ["text"]


@require_http_methods(["GET", "HEAD", "POST"])
def questions(request: HttpRequest) -> HttpResponse:
    form = QuestionForm(request.POST or None)
    if form.is_valid():
        form.save()
        publish_list()
        form = QuestionForm()
        if not is_htmx(request):
            return redirect("questions")
    template = "questions/form.html" if is_htmx(request) else "questions/page.html"
    return render(request, template, {"form": form, "websocket_url": websocket_url(request), **listed()})


@require_POST
def vote(request: HttpRequest) -> HttpResponse:
    try:
        found = Question.objects.filter(pk=int(request.POST.get("question", "")))
    except ValueError:
        raise Http404 from None
    if not found.update(votes=F("votes") + 1):
        raise Http404
    publish_list()
    return HttpResponse(status=204) if is_htmx(request) else redirect("questions")


def websocket_url(request: HttpRequest) -> str:
    """Return where htmx connects to. It knows paths and whole addresses, but no ":8001/", another port of this host."""
    url = server_url()
    host, _ = split_domain_port(request.get_host())
    return f"{'wss' if request.is_secure() else 'ws'}://{host}{url}" if url.startswith(":") else url


def is_htmx(request: HttpRequest) -> bool:
    return request.headers.get("HX-Request") == "true"
