"""The dashboard: ``streamlit run app/main.py -- ROOT`` shows every run in ROOT and below it.

Streamlit runs this file and the pages in ``views/`` as scripts, with this folder on the path; so
the modules beside it are imported by their own names (all start with ``dashboard_``), and nothing
imports ``app``. It works alike in the repository and, as ``spectra/_app``, in an installed wheel.
"""

import logging
import sys
from pathlib import Path

import streamlit as st

_FOLDER = Path(__file__).resolve().parent
if str(_FOLDER) not in sys.path:
    sys.path.insert(0, str(_FOLDER))

from dashboard_choices import enter_page  # noqa: E402
from dashboard_pages import PAGES, view  # noqa: E402  (this folder has to be on the path)

# At a laptop's width the figures need the room: a narrow column of choices, the menu on top.
st.set_page_config(page_title="Spectra", layout="wide", initial_sidebar_state=264)
st.html("<style>.stMainBlockContainer {padding: 4.5rem 2.5rem 2rem}</style>")
# No icons: Streamlit would fetch the browser tab's one from a server of its own choice.
_page = st.navigation(
    [
        st.Page(view(name), title=title, default=i == 0)
        for i, (name, title) in enumerate(PAGES.items())
    ],
    position="top",
)
enter_page(_page.url_path)
try:
    _page.run()
except Exception:
    # What a page can expect, it says itself; this is a fault of ours, for whoever reads the log.
    logging.getLogger(__name__).exception("The page %s failed.", _page.title)
    st.error(
        "This page could not be drawn: a fault of the dashboard. The terminal in which it was "
        "started says what happened. Choose other runs or another page, or load this one again."
    )
