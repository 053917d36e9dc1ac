"""Sphinx's settings; `python docs/build.py`, or `make site`, runs it."""

from datetime import date
from pathlib import Path

from book import settings

import dlcourse

HERE = Path(__file__).resolve().parent

project = "dlcourse"
author = "the dlcourse authors"
release = version = dlcourse.__version__
project_copyright = f"{date.today().year}, {author}. Code: MIT. Text: CC BY 4.0"
language = "en"

extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton", "book.extension"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline", "deflist"]
nb_render_markdown_format = "myst"  # for the tables and links in outputs
myst_heading_anchors = 3
myst_links_external_new_tab = False
# two classes may share a name; a type that names one is then left without a link
suppress_warnings = ["ref.python"]
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "dlcourse"
html_static_path = [str(HERE / "static")]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_extra_path = []  # docs/build.py names the folder with the notebooks and recipes
html_math_renderer = "bundled_katex"
html_favicon = str(HERE / "static" / "favicon.svg")
html_context = {"default_mode": "auto"}
html_use_index = False
html_domain_indices = False
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_baseurl = settings.SITE
html_theme_options = {
    "repository_url": settings.SOURCE,
    "repository_branch": settings.BRANCH,
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": False,
    "navbar_persistent": [],
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_exclude = ".linenos, .gp, .go"

epub_show_urls = "no"
epub_title = "dlcourse: training deep networks, in sixteen tested chapters"
epub_author = epub_publisher = author
epub_copyright = project_copyright
epub_basename = "dlcourse"
epub_identifier = settings.SITE
epub_scheme = "URL"
epub_exclude_files = ["search.html"]
epub_css_files = ["epub.css"]
epub_use_index = False
