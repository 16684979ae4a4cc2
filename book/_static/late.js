/* Two large scripts, for formulas and for icons, run once the text has been painted: it is there before them. */
requestAnimationFrame(function () {
  setTimeout(function () {
    for (const late of document.querySelectorAll('script[type="late"]')) {
      const script = document.createElement("script");
      script.src = late.src;
      script.async = false;
      late.replaceWith(script);
    }
  });
});
