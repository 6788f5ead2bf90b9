// The page, from top to bottom. One section that fails leaves the others standing, and says so.

startTheme();
for (const show of [
  showHead,
  showVerdict,
  showConfigurations,
  showGrades,
  showUnfinished,
  showCurves,
  showEvaluations,
  showCompare,
  showRuns,
]) {
  try {
    show();
  } catch (error) {
    console.error(error);
    find("notes").before(make("p", { class: "bad" }, `A part of this page could not be drawn: ${error.message}`));
  }
}
