"use strict";
/* Before the page is painted: the colours that were chosen last; the system's, if none were. */
document.documentElement.style.colorScheme = localStorage.getItem("theme") || "";
