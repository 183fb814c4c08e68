"""The dashboard: ``streamlit run app/main.py -- ROOT`` shows every run in ROOT and below it.

Streamlit runs this file and the pages in ``views/`` as scripts, with this folder on the path; so
the modules beside it are imported by their own names (all start with ``dashboard_``), and nothing
imports ``app``. It works alike in the repository and, as ``spectra/_app``, in an installed wheel.
"""

import sys
from pathlib import Path

import streamlit as st

_FOLDER = Path(__file__).resolve().parent
if str(_FOLDER) not in sys.path:
    sys.path.insert(0, str(_FOLDER))

st.set_page_config(page_title="Spectra", layout="wide")
# No icons: Streamlit would fetch the browser tab's one from a server of its own choice.
st.navigation(
    [
        st.Page(_FOLDER / "views" / "trajectories.py", title="Trajectories", default=True),
        st.Page(_FOLDER / "views" / "metrics.py", title="Metrics over steps"),
        st.Page(_FOLDER / "views" / "training.py", title="Training curves"),
    ]
).run()
