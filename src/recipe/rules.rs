//! Recipes: ordered rules that give each tensor a type, as a TOML file says them.
//!
//! The mixes of llama-quantize are recipes too (`mixes/*.toml`).

use super::assign::{Cause, RecipeError, Shape, layer_of};
use super::file_type::FileType;
use super::role::Role;
use crate::io::IoError;
use crate::names::hex;
use crate::pattern::Pattern;
use crate::quant::QuantType;
use minijinja::{Environment, Expression, UndefinedBehavior, context};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::Path;

/// What the rules ask about a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Layers, multi-token-prediction layers included.
    pub n_layer: u32,
    /// Query heads.
    pub n_head: u32,
    /// Key and value heads; 1 for latent attention.
    pub n_head_kv: u32,
    /// Routed experts, 0 for none.
    pub n_expert: u32,
    /// Whether the token embedding also serves as output matrix.
    pub tied: bool,
}

/// A recipe: rules in order, of which the first that fits a tensor decides its type, and a type
/// for the tensors that none fits.
///
/// ```
/// # use requant::recipe::Recipe;
/// let recipe = Recipe::parse(r#"
///     name = "shallow experts first"
///     file-type = "Q4_K_M"
///     default = "Q4_K"
///
///     [[rule]]
///     name = "the first eighth of the experts"
///     role = "expert"
///     when = "layer < layers // 8"
///     type = "Q6_K"
/// "#)?;
/// assert_eq!(recipe.rule_name(0), "the first eighth of the experts");
/// # Ok::<_, requant::recipe::RecipeError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Recipe {
    name: String,
    file_type: FileType,
    default: QuantType,
    rules: Vec<Rule>,
    text: String,
}

#[derive(Clone, Debug)]
struct Rule {
    name: String,
    tensors: Option<Pattern>,
    roles: Vec<Role>,
    /// First and last, the last included.
    layers: Vec<(u32, u32)>,
    when: Option<String>,
    ty: QuantType,
}

/// A recipe as its file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    name: String,
    file_type: Option<String>,
    default: String,
    #[serde(default)]
    rule: Vec<FileRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    name: Option<String>,
    tensors: Option<String>,
    #[serde(default)]
    role: OneOrMore,
    layers: Option<String>,
    when: Option<String>,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Default for OneOrMore {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

/// What an expression may speak of.
const VARIABLES: [&str; 14] = [
    "name", "layer", "layers", "i", "n", "at", "columns", "rows", "matrices", "experts", "heads",
    "kv_heads", "tied", "imatrix",
];

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// No TOML, unknown keys, types, roles or variables, patterns that are no regular expressions.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        let file: File = toml::from_str(text)?;
        let default = quant_type(&file.default, "default")?;
        let file_type = match &file.file_type {
            Some(name) => {
                name.parse().map_err(|error| RecipeError::rule("file-type", format!("{error}")))?
            }
            None => FileType::of_type(default).ok_or_else(|| {
                RecipeError::rule(
                    "file-type",
                    format!("is missing, and no mix is made of {default}"),
                )
            })?,
        };
        let env = environment();
        let rules = file.rule.into_iter().enumerate().map(|(i, rule)| Rule::new(i, rule, &env));
        let rules = rules.collect::<Result<_, _>>()?;
        Ok(Self { name: file.name, file_type, default, rules, text: text.to_owned() })
    }

    /// A mix of llama-quantize by its name, or a recipe in a file (`.toml`).
    ///
    /// # Errors
    /// No such mix, a file that cannot be read, and those of [`Recipe::parse`].
    pub fn named(text: &str) -> Result<Self, RecipeError> {
        if !text.ends_with(".toml") {
            return Ok(Self::of(text.parse()?));
        }
        let path = Path::new(text);
        let read = std::fs::read_to_string(path).map_err(|error| IoError::new(path, error))?;
        let wrong = |error| RecipeError::In { path: text.to_owned(), error: Box::new(error) };
        Self::parse(&read).map_err(wrong)
    }

    /// The recipe of a mix of llama-quantize.
    pub fn of(file_type: FileType) -> Self {
        Self::parse(file_type.recipe()).expect("the recipes that are shipped can be read")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What files made with it have as `general.file_type`.
    pub fn file_type(&self) -> FileType {
        self.file_type
    }

    /// The type of tensors that no rule fits.
    pub fn default_type(&self) -> QuantType {
        self.default
    }

    /// The name of a rule, by its place.
    pub fn rule_name(&self, rule: usize) -> &str {
        &self.rules[rule].name
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// SHA-256 of its text, in hexadecimal digits.
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.text))
    }

    /// Names of the rules whose `tensors`, `role` and `layers` fit none of these tensors.
    pub fn unmatched<'a>(&'a self, tensors: &[Shape]) -> Vec<&'a str> {
        let unmatched = |rule: &&Rule| {
            !tensors.iter().any(|t| rule.counts(t.name) && rule.is_in_layers(layer_of(t.name)))
        };
        self.rules.iter().filter(unmatched).map(|rule| rule.name.as_str()).collect()
    }
}

impl Rule {
    fn new(number: usize, file: FileRule, env: &Environment) -> Result<Self, RecipeError> {
        let name = file.name.unwrap_or_else(|| format!("rule {}", number + 1));
        let fail = |what: String| RecipeError::rule(&name, what);
        let bad = |text: &str, error| RecipeError::expression(&name, format!("`{text}`"), error);
        let pattern =
            |text: &String| Pattern::parse(text).map_err(|error| bad(text, Cause::from(error)));
        let roles = match file.role {
            OneOrMore::One(role) => vec![role],
            OneOrMore::More(roles) => roles,
        };
        let role = |text: &String| {
            let all = Role::ALL.map(Role::name);
            let known = Role::ALL.into_iter().find(|role| role.name() == text);
            known.ok_or_else(|| fail(format!("unknown role `{text}`; known: {}", all.join(", "))))
        };
        if let Some(when) = &file.when {
            let expression =
                env.compile_expression(when).map_err(|error| bad(when, Cause::from(error)))?;
            let mut unknown: Vec<String> =
                expression.undeclared_variables(false).into_iter().collect();
            unknown.retain(|name| !VARIABLES.contains(&name.as_str()));
            unknown.sort();
            if let Some(unknown) = unknown.first() {
                let known = VARIABLES.join(", ");
                return Err(fail(format!("`{when}` speaks of `{unknown}`; known: {known}")));
            }
        }
        Ok(Self {
            tensors: file.tensors.as_ref().map(pattern).transpose()?,
            roles: roles.iter().map(role).collect::<Result<_, _>>()?,
            layers: match &file.layers {
                Some(text) => ranges(text).ok_or_else(|| {
                    fail(format!("layers = \"{text}\" is not of the form \"0-2, 5, 58-\""))
                })?,
                None => Vec::new(),
            },
            ty: quant_type(&file.r#type, &name)?,
            when: file.when,
            name,
        })
    }

    /// Whether a tensor is among those that the rule counts: by name and role.
    fn counts(&self, name: &str) -> bool {
        self.tensors.as_ref().is_none_or(|pattern| pattern.is_match(name))
            && (self.roles.is_empty() || self.roles.contains(&Role::of(name)))
    }

    fn is_in_layers(&self, layer: Option<u32>) -> bool {
        let within =
            |layer| self.layers.iter().any(|&(first, last)| (first..=last).contains(&layer));
        self.layers.is_empty() || layer.is_some_and(within)
    }
}

fn quant_type(text: &str, rule: &str) -> Result<QuantType, RecipeError> {
    text.parse().map_err(|error| RecipeError::rule(rule, format!("{error}")))
}

/// `0-2, 5, 58-`, as first and last.
fn ranges(text: &str) -> Option<Vec<(u32, u32)>> {
    let range = |text: &str| {
        let (first, last) = match text.trim().split_once('-') {
            None => (text.trim().parse().ok()?, text.trim().parse().ok()?),
            Some((first, "")) => (first.trim().parse().ok()?, u32::MAX),
            Some((first, last)) => (first.trim().parse().ok()?, last.trim().parse().ok()?),
        };
        (first <= last).then_some((first, last))
    };
    text.split(',').map(range).collect()
}

fn environment() -> Environment<'static> {
    let mut env = Environment::empty();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env
}

/// Applies a recipe to the tensors of one model, in the order of the output file.
pub(super) struct Chooser<'a> {
    recipe: &'a Recipe,
    facts: &'a Facts,
    imatrix: bool,
    conditions: Vec<Option<Expression<'a, 'a>>>,
    /// For each rule, how many tensors it counts.
    total: Vec<usize>,
    /// For each rule, how many of them were seen.
    seen: Vec<usize>,
}

/// Where conditions are kept while they are used.
pub(super) struct Conditions(Environment<'static>);

impl Conditions {
    pub fn new() -> Self {
        Self(environment())
    }

    /// Compiles a recipe's conditions for a model of these tensors.
    pub fn chooser<'a>(
        &'a self,
        recipe: &'a Recipe,
        tensors: &[Shape],
        facts: &'a Facts,
        imatrix: bool,
    ) -> Result<Chooser<'a>, RecipeError> {
        let compile = |rule: &'a Rule| {
            let when = rule.when.as_deref();
            let compiled = when.map(|when| self.0.compile_expression(when)).transpose();
            let what = || format!("`{}`", when.unwrap_or_default());
            compiled.map_err(|error| RecipeError::expression(&rule.name, what(), error))
        };
        let count = |rule: &Rule| tensors.iter().filter(|t| rule.counts(t.name)).count();
        Ok(Chooser {
            conditions: recipe.rules.iter().map(compile).collect::<Result<_, _>>()?,
            total: recipe.rules.iter().map(count).collect(),
            seen: vec![0; recipe.rules.len()],
            recipe,
            facts,
            imatrix,
        })
    }
}

impl Chooser<'_> {
    /// The rule that decides a tensor's type, with the type. Every tensor that is left to the
    /// recipe must be asked for once, in order: some rules count.
    pub fn choose(&mut self, tensor: &Shape) -> Result<Option<(usize, QuantType)>, RecipeError> {
        let layer = layer_of(tensor.name);
        let extent = |i: usize| tensor.dims.get(i).copied().unwrap_or(1);
        let mut chosen = None;
        for (number, rule) in self.recipe.rules.iter().enumerate() {
            if !rule.counts(tensor.name) {
                continue;
            }
            let i = self.seen[number];
            self.seen[number] += 1;
            if chosen.is_some() || !rule.is_in_layers(layer) {
                continue;
            }
            let Some(condition) = &self.conditions[number] else {
                chosen = Some((number, rule.ty));
                continue;
            };
            let layer = layer.map_or(-1, i64::from);
            let at = if self.facts.n_expert > 1 { layer } else { i as i64 };
            let value = condition.eval(context! {
                name => tensor.name,
                layer, i, at,
                layers => self.facts.n_layer,
                n => self.total[number],
                columns => extent(0),
                rows => extent(1),
                matrices => extent(2),
                experts => self.facts.n_expert,
                heads => self.facts.n_head,
                kv_heads => self.facts.n_head_kv,
                tied => self.facts.tied,
                imatrix => self.imatrix,
            });
            let what = || format!("its condition, for tensor `{}`", tensor.name);
            let value =
                value.map_err(|error| RecipeError::expression(&rule.name, what(), error))?;
            match bool::try_from(value.clone()) {
                Ok(true) => chosen = Some((number, rule.ty)),
                Ok(false) => {}
                Err(_) => {
                    let what = format!("{}: gives {value}, not true or false", what());
                    return Err(RecipeError::rule(&rule.name, what));
                }
            }
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Recipe::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn shipped_recipes_are_those_of_their_file_types() {
        for file_type in FileType::all() {
            let recipe = Recipe::of(file_type);
            assert_eq!(recipe.name(), file_type.to_string());
            assert_eq!(recipe.file_type(), file_type);
            assert_eq!(recipe.default_type(), file_type.default_type());
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let recipe = Recipe::parse(
            r#"
            name = "test"
            default = "Q4_K"
            [[rule]]
            role = ["expert", "shared-expert"]
            layers = "0, 3-"
            type = "Q6_K"
            [[rule]]
            name = "every other"
            tensors = '_exps\.'
            when = "i % 2 == 1 and n == 4"
            type = "Q5_K"
            "#,
        )
        .unwrap();
        let names: Vec<String> = (0..4).map(|i| format!("blk.{i}.ffn_up_exps.weight")).collect();
        let (dims, source) = (&[256, 2, 4], QuantType::BF16);
        let shape = |name| Shape { name, dims, source, unmeasured: false };
        let shapes: Vec<Shape> = names.iter().map(|name| shape(name)).collect();
        let facts = Facts::default();
        let conditions = Conditions::new();
        let mut chooser = conditions.chooser(&recipe, &shapes, &facts, false).unwrap();
        let chosen: Vec<_> =
            shapes.iter().map(|s| chooser.choose(s).unwrap().map(|c| c.1)).collect();
        use QuantType::{Q5_K, Q6_K};
        assert_eq!(chosen, [Some(Q6_K), Some(Q5_K), None, Some(Q6_K)]);
        assert_eq!(recipe.unmatched(&[shape("output.weight")]), ["rule 1", "every other"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let with = |rule: &str| {
            refusal(&format!("name = 'x'\ndefault = 'Q4_K'\n[[rule]]\ntype = 'Q6_K'\n{rule}"))
        };
        assert!(refusal("name = 1").contains("line 1"));
        assert!(refusal("name = 'x'\ndefault = 'Q4_Z'").contains("Q4_Z"));
        assert!(with("tensor = 'x'").contains("unknown field `tensor`"));
        assert!(with("role = 'experts'").contains("known: embedding, attention"));
        assert!(with("layers = '5-2'").contains("0-2, 5, 58-"));
        assert!(with("tensors = '('").contains("rule 1"));
        assert!(with("when = 'i <'").contains("rule 1"));
        assert!(with("when = 'depth < 2'").contains("speaks of `depth`"));
    }

    #[test]
    fn conditions_must_be_true_or_false() {
        for (when, said) in [("i + 1", "gives 1"), ("1 // i", "1 // 0")] {
            let text = format!("name='x'\ndefault='Q4_K'\n[[rule]]\ntype='Q6_K'\nwhen='{when}'");
            let recipe = Recipe::parse(&text).unwrap();
            let (name, dims, source) = ("output.weight", &[256, 2], QuantType::BF16);
            let shape = Shape { name, dims, source, unmeasured: false };
            let (facts, conditions) = (Facts::default(), Conditions::new());
            let mut chooser = conditions.chooser(&recipe, &[shape], &facts, false).unwrap();
            let error = chooser.choose(&shape).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("output.weight"), "{error}");
        }
    }
}
